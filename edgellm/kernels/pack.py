"""Integer codes into the units of tile16x4. Threads share out the tiles."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import ROW_SCALES, ROWS, SCALE_LINE, TileLayout
from edgellm.kernels.layout import Pack as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at, u8_at


def build(target: Target, bits: int, asym: int, block: int) -> Callable[..., None]:
    """The kernel pack for one packed form. Rows beyond N become zero."""
    form = TileLayout(0, bits, bool(asym), block)
    per_line, group_stride, block_bytes = form.group, form.group_stride, form.block_bytes

    def pack(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        k = a[Arg.K]
        for tile in range(a[Arg.TILES] * thread // threads, a[Arg.TILES] * (thread + 1) // threads):
            lines = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE] + ROW_SCALES
            for r in range(ROWS):
                row = tile * ROWS + r
                if row >= a[Arg.N]:
                    continue  # fresh memory is zero
                for n in range(k // block):
                    source = u8_at(a[Arg.SOURCE] + row * k + n * block)
                    line = lines + n // per_line * group_stride
                    to = u8_at(line + SCALE_LINE + n % per_line * block_bytes + 4 * r)
                    for i in range(4):
                        if bits == 8:
                            for j in range(block // 4):
                                to[64 * j + i] = source[4 * j + i]
                        else:
                            for j in range(block // 8):
                                to[64 * j + i] = source[8 * j + i] | (source[8 * j + 4 + i] << 4)

    return pack

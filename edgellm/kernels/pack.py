"""Integer codes into the units of tile16x4. Threads share out the tiles."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import ROWS
from edgellm.kernels.layout import Pack as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at, u8_at


def build(target: Target, bits: int) -> Callable[..., None]:
    """The kernel pack, for 4 or 8 bits. Rows beyond N become zero."""

    def pack(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        k = a[Arg.K]
        for tile in range(a[Arg.TILES] * thread // threads, a[Arg.TILES] * (thread + 1) // threads):
            units = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE] + a[Arg.CODES]
            for r in range(ROWS):
                row = tile * ROWS + r
                source = u8_at(a[Arg.SOURCE] + row * k)
                to = u8_at(units + 4 * r)
                if bits == 8:
                    for j in range(k // 4):
                        for i in range(4):
                            to[64 * j + i] = source[4 * j + i] if row < a[Arg.N] else 0
                else:
                    for j in range(k // 8):
                        for i in range(4):
                            code = source[8 * j + i] | (source[8 * j + 4 + i] << 4)
                            to[64 * j + i] = code if row < a[Arg.N] else 0

    return pack

"""Ternary tensors whose rows have a single scale, as the file has them, to Base3Layout."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.blocks import DECODERS
from edgellm.kernels.codes import CODE_FORMS
from edgellm.kernels.layout import ROW_SCALES, ROWS, TRITS
from edgellm.kernels.layout import Pack as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at, u8_at


def build(target: Target, type: str) -> Callable[..., None]:
    """The kernel pack_base3 for a ternary type. TILES and TILE_STRIDE are those of groups of five tiles. Rows
    beyond N become zero. SCRATCH as for the kernel pack; of a row it needs a block's codes and scales."""
    decode, form = DECODERS[type], CODE_FORMS[type]
    elements, block_bytes = form.elements, form.nbytes

    def pack(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        k, factor = a[Arg.K], np.float32(f64_at(args)[Arg.FACTOR])
        codes = a[Arg.SCRATCH]
        scales = codes + elements
        for five in range(a[Arg.TILES] * thread // threads, a[Arg.TILES] * (thread + 1) // threads):
            w = a[Arg.WEIGHT] + five * a[Arg.TILE_STRIDE]
            units = u8_at(w + TRITS * ROW_SCALES)
            for i in range(16 * k):
                units[i] = 0
            power = 1
            for d in range(TRITS):
                for r in range(ROWS):
                    row = (five * TRITS + d) * ROWS + r
                    largest = np.float32(0)
                    for first in range(0, k, elements):
                        q = u8_at(codes)
                        if row < a[Arg.N]:
                            source = (
                                a[Arg.SOURCE] + row * a[Arg.SOURCE_STRIDE] + first // elements * block_bytes
                            )
                            decode(u8_at(source), q, f32_at(scales), f32_at(scales))
                            largest = max(largest, f32_at(scales)[0])
                        else:
                            for i in range(elements):
                                q[i] = 1
                        for i in range(elements):
                            at = (first + i) // 4 * 64 + 4 * r + i % 4
                            units[at] += q[i] * power
                    f32_at(w)[d * ROWS + r] = largest * factor
                power *= 3

    return pack

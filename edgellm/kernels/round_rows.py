"""Rows of activations rounded to whole 127ths of their largest magnitude, kept in float32: the input of
linears that were trained so and whose weights are floats. quantize does it for weights of integer codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import RoundRows as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.quantize import SMALLEST
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, i64_at


def build(target: Target) -> Callable[..., None]:
    """The kernel round_rows. Every thread rounds a lone token into its own copy; several are shared out."""
    smallest = np.float32(SMALLEST)

    def round_rows(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, width = s[State.TOKENS], a[Arg.WIDTH]
        first, last = 0, 1
        x_row, out_row = a[Arg.X_PRIVATE] * thread, thread
        if tokens != 1:
            first, last = tokens * thread // threads, tokens * (thread + 1) // threads
            x_row, out_row = 0, 0
        for t in range(first, last):
            x = f32_at(a[Arg.X] + (t + x_row) * a[Arg.X_STRIDE])
            out = f32_at(a[Arg.OUT] + (t + out_row) * a[Arg.OUT_STRIDE])
            top = smallest
            for i in range(width):
                top = max(top, abs(x[i]))
            factor = np.float32(127) / top
            for i in range(width):
                out[i] = np.rint(x[i] * factor) / factor

    return round_rows

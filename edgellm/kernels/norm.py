"""RMS and layer norm over groups of neighbours: whole rows, or every head by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import Norm as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, helper, i64_at

FASTMATH = {"reassoc", "contract", "nsz"}  # lets the sums over a row use vectors


def make_group() -> Callable[..., None]:
    """group(x, out, width, eps, weight, bias, layer) on addresses: `width` float32; bias may be 0."""

    def group(x_at, out_at, width, eps, weight_at, bias_at, layer):  # type: ignore[no-untyped-def]
        x, out, weight = f32_at(x_at), f32_at(out_at), f32_at(weight_at)
        mean = np.float32(0)
        if layer != 0:
            for i in range(width):
                mean += x[i]
            mean /= np.float32(width)
        total = np.float32(0)
        for i in range(width):
            total += (x[i] - mean) * (x[i] - mean)
        factor = np.float32(1.0 / np.sqrt(np.float64(total) / width + eps))
        if bias_at == 0:
            for i in range(width):
                out[i] = (x[i] - mean) * factor * weight[i]
        else:
            bias = f32_at(bias_at)
            for i in range(width):
                out[i] = (x[i] - mean) * factor * weight[i] + bias[i]

    return helper(group, FASTMATH)


def build(target: Target) -> Callable[..., None]:
    """The kernel norm. With OUT_PRIVATE and a lone token every thread writes its own copy of the row."""
    group = make_group()

    def norm(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, groups, width = s[State.TOKENS], a[Arg.GROUPS], a[Arg.WIDTH]
        eps = f64_at(args)[Arg.EPS]
        alone = tokens == 1 and a[Arg.OUT_PRIVATE] != 0
        first, last = 0, groups
        if not alone:
            first = tokens * groups * thread // threads
            last = tokens * groups * (thread + 1) // threads
        x_row = a[Arg.X_PRIVATE] * thread if tokens == 1 else 0
        out_row = thread if alone else 0
        for item in range(first, last):
            t, g = item // groups, item % groups
            x_at = a[Arg.X] + (t + x_row) * a[Arg.X_STRIDE] + 4 * g * width
            out_at = a[Arg.OUT] + (t + out_row) * a[Arg.OUT_STRIDE] + 4 * g * width
            group(x_at, out_at, width, eps, a[Arg.WEIGHT], a[Arg.BIAS], a[Arg.LAYER])

    return norm

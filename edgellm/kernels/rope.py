"""Rotary position embedding in place, from a table of cosines and sines."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import Rope as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, i64_at


def build(target: Target, style: str) -> Callable[..., None]:
    """The kernel rope for one pairing, "half" or "interleaved". Threads share out the heads."""
    interleaved = style == "interleaved"

    def rope(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        heads, half = a[Arg.HEADS], a[Arg.HALF]
        positions = i64_at(s[State.POSITIONS])
        items = s[State.TOKENS] * heads
        for item in range(items * thread // threads, items * (thread + 1) // threads):
            t, head = item // heads, item % heads
            x = f32_at(a[Arg.X] + t * a[Arg.X_STRIDE] + 4 * head * a[Arg.HEAD_DIM])
            cos = f32_at(a[Arg.TABLE] + positions[t] * half * 8)
            sin = f32_at(a[Arg.TABLE] + positions[t] * half * 8 + 4 * half)
            for i in range(half):
                if interleaved:
                    p, q = 2 * i, 2 * i + 1
                else:
                    p, q = i, i + half
                u, v = x[p], x[q]
                x[p] = u * cos[i] - v * sin[i]
                x[q] = u * sin[i] + v * cos[i]

    return rope

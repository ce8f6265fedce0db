"""Moves the rows that logits are wanted of to the front of a buffer."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import Select as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, i64_at


def build(target: Target) -> Callable[..., None]:
    """The kernel select, in place. Threads share out the columns. A private buffer's lone wanted row goes
    to every thread's copy."""

    def select(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        if s[State.TOKENS] == 1:
            return
        tail = i64_at(s[State.TAIL])
        wanted = i64_at(tail[State.WANTED])
        rows = tail[State.TOKENS]
        copies = threads if rows == 1 and a[Arg.X_PRIVATE] != 0 else 1
        vectors = a[Arg.WIDTH] // 16
        first, last = vectors * thread // threads * 16, vectors * (thread + 1) // threads * 16
        for i in range(rows):  # a row comes from behind or from its own place, so none is lost
            source = f32_at(a[Arg.X] + wanted[i] * a[Arg.X_STRIDE])
            for copy in range(copies):
                if wanted[i] != i + copy:
                    out = f32_at(a[Arg.X] + (i + copy) * a[Arg.X_STRIDE])
                    for j in range(first, last):
                        out[j] = source[j]

    return select

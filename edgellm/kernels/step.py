"""One call per token: a thread of the team runs a whole table of kernels, waiting only where it must."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import Instruction, State
from edgellm.kernels.layout import Step as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import call_kernel, i64_at
from edgellm.kernels.waiting import make_barrier


def build(target: Target) -> Callable[..., None]:
    """The kernel step."""
    barrier = make_barrier(target)

    def step(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens = s[State.TOKENS]
        for i in range(a[Arg.COUNT]):
            if i == a[Arg.TAIL]:
                state = s[State.TAIL]
                tokens = i64_at(state)[State.TOKENS]
                if tokens == 0:
                    break
            op = i64_at(a[Arg.TABLE] + 32 * i)
            call_kernel(op[Instruction.KERNEL], op[Instruction.ARGS], state, thread, threads)
            wait = op[Instruction.BARRIER_ONE] if tokens == 1 else op[Instruction.BARRIER_MANY]
            if wait != 0 and threads > 1:
                barrier(s[State.BARRIER], threads)

    return step

"""One call per token: a thread of the team runs a whole table of kernels, waiting only where it must."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.clock import make_clock
from edgellm.kernels.layout import Instruction, State
from edgellm.kernels.layout import Step as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import call_kernel, i64_at
from edgellm.kernels.waiting import make_barrier


def build(target: Target, part: str = "run") -> Callable[..., None]:
    """The kernel step. Its part "profile" does the same and writes down, for each instruction and thread,
    when it began, when it ended, and when the thread had waited for the others."""
    barrier = make_barrier(target)
    clock = make_clock(target)
    size = 8 * len(Instruction)
    timed = part == "profile"  # a constant to the compiler: the ordinary step holds no trace of it

    def step(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens = s[State.TOKENS]
        for i in range(a[Arg.COUNT]):
            if i == a[Arg.TAIL]:
                state = s[State.TAIL]
                tokens = i64_at(state)[State.TOKENS]
                if tokens == 0:
                    break
            op = i64_at(a[Arg.TABLE] + size * i)
            if timed:
                times = i64_at(a[Arg.TIMES] + 24 * (thread * a[Arg.COUNT] + i))
                times[0] = clock()
            if tokens == 1 or op[Instruction.LONE] == 0:
                call_kernel(op[Instruction.KERNEL], op[Instruction.ARGS], state, thread, threads)
            if timed:
                times[1] = clock()
            wait = op[Instruction.BARRIER_ONE] if tokens == 1 else op[Instruction.BARRIER_MANY]
            if wait != 0 and threads > 1:
                barrier(s[State.BARRIER], threads)
            if timed:
                times[2] = clock()
            if op[Instruction.STOPS] != 0 and i64_at(op[Instruction.STOPS])[0] != 0:
                # All threads see the same here: it was set before the barrier, and nobody else sets it
                # before the next one.
                i64_at(a[Arg.STOPPED])[0] = i + 1
                break

    return step

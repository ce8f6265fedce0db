"""One call per token: a thread of the team runs a whole table of kernels, waiting only where it must."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import Instruction, State
from edgellm.kernels.layout import Step as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, atomic_load, call_kernel, i64_at, make_pause, yield_cpu

SPINS = 4000  # about 40 us of waiting; then another thread of the machine may have the core


def build(target: Target) -> Callable[..., None]:
    """The kernel step."""
    pause = make_pause(target)

    def step(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens = s[State.TOKENS]
        for i in range(a[Arg.COUNT]):
            op = i64_at(a[Arg.TABLE] + 32 * i)
            call_kernel(op[Instruction.KERNEL], op[Instruction.ARGS], state, thread, threads)
            wait = op[Instruction.BARRIER_ONE] if tokens == 1 else op[Instruction.BARRIER_MANY]
            if wait != 0 and threads > 1:
                ticket = atomic_add(s[State.BARRIER], 1)
                target_count = (ticket // threads + 1) * threads
                spins = 0
                while atomic_load(s[State.BARRIER]) < target_count:
                    pause()
                    spins += 1
                    if spins > SPINS:
                        yield_cpu()

    return step

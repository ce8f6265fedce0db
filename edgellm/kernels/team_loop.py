"""What the threads of a team do: wait for work, run a kernel together, wait again.

A waiting thread spins for a while, since the next token is usually close, and then sleeps in the kernel
of the operating system (a futex on Linux).
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.layout import Control, TeamCall
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, atomic_load, call_kernel, i64_at, make_pause, yield_cpu
from edgellm.kernels.waiting import make_waiting

SPINS = 20000  # some 200 us: longer than a sampler takes between two tokens
FINISH_SPINS = 4000


def build(target: Target, part: str) -> Callable[..., None]:
    """The kernels team_loop: "work" for a thread that waits, "run" for the one that has the work.

    args is the address of a Control record; call records are TeamCall, see layout.
    """
    pause = make_pause(target)
    sleep_while, wake_all = make_waiting(target)

    def work(args: int, state: int, thread: int, threads: int) -> None:
        c = i64_at(args)
        seen = 0
        while True:
            spins = 0
            while atomic_load(args + 8 * Control.GENERATION) == seen:
                spins += 1
                if spins < SPINS:
                    pause()
                else:
                    sleep_while(args + 8 * Control.GENERATION, seen)
            seen += 1
            call = i64_at(c[Control.CALL])
            if call[TeamCall.KERNEL] == 0:
                atomic_add(args + 8 * Control.FINISHED, 1)
                return
            call_kernel(call[TeamCall.KERNEL], call[TeamCall.ARGS], call[TeamCall.STATE], thread, threads)
            atomic_add(args + 8 * Control.FINISHED, 1)

    def run(args: int, state: int, thread: int, threads: int) -> None:
        c = i64_at(args)
        call = i64_at(state)
        c[Control.CALL] = state
        generation = atomic_add(args + 8 * Control.GENERATION, 1) + 1
        wake_all(args + 8 * Control.GENERATION)
        if call[TeamCall.KERNEL] != 0:
            call_kernel(call[TeamCall.KERNEL], call[TeamCall.ARGS], call[TeamCall.STATE], thread, threads)
        spins = 0
        while atomic_load(args + 8 * Control.FINISHED) < generation * (threads - 1):
            spins += 1
            if spins < FINISH_SPINS:
                pause()
            else:
                yield_cpu()

    return work if part == "work" else run

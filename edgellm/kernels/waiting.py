"""How a thread waits for others: it spins while that is cheap, and then sleeps in the operating system.

Sleeping matters on a busy machine: a thread that spins, or yields in a loop, takes the time of those that
it waits for. Linux has the futex for it; elsewhere a waiting thread naps.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.simd.emit import I32, I64, PTR, Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, atomic_load, i64_at, make_pause

SPINS = 2000  # about 40 us, which is far more than threads of an idle machine differ by
CALM = 8  # waits
MOST_HASTE = 6  # halvings: less than a microsecond remains
# Numbers of the system calls.
_FUTEX = {"x86_64": 202, "aarch64": 98}
_GETRUSAGE = {"x86_64": 98, "aarch64": 165}
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private to the process
_RUSAGE_WORDS, _PREEMPTED = 18, 17  # int64 of Linux's struct rusage, and which of them is ru_nivcsw


def _syscall(e: Emit, number: int, *arguments: Any) -> None:
    fnty = ir.FunctionType(I64, [I64], var_arg=True)
    fn = e.b.module.globals.get("syscall") or ir.Function(e.b.module, fnty, "syscall")
    e.b.call(fn, [ir.Constant(I64, number), *arguments])


def _futex(e: Emit, number: int, address: Any, operation: int, value: Any) -> None:
    word, null = e.b.inttoptr(address, PTR), ir.Constant(PTR, None)
    _syscall(e, number, word, ir.Constant(I32, operation), value, null)


def make_waiting(target: Target) -> tuple[Any, Any]:
    """Intrinsics sleep_while(address, value) and wake_all(address), on the low half of an int64."""
    machine = target.triple.split("-")[0]
    number = _FUTEX.get(machine) if "linux" in target.triple else None

    @intrinsic
    def sleep_while(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if number is not None:
                _futex(Emit(builder, target), number, args[0], _WAIT, builder.trunc(args[1], I32))
            else:  # no futex: nap, and look again
                fnty = ir.FunctionType(I32, [I32])
                fn = builder.module.globals.get("usleep") or ir.Function(builder.module, fnty, "usleep")
                builder.call(fn, [ir.Constant(I32, 50)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    @intrinsic
    def wake_all(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if number is not None:
                _futex(Emit(builder, target), number, args[0], _WAKE, ir.Constant(I32, 0x7FFFFFFF))
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return sleep_while, wake_all


def make_preempted(target: Target) -> Any:
    """Intrinsic preempted(): how often the system has taken the CPU from one of this process's threads to
    give it to others, so far. Where it does not tell, 0."""
    machine = target.triple.split("-")[0]
    number = _GETRUSAGE.get(machine) if "linux" in target.triple else None

    @intrinsic
    def preempted(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(builder, target)
            if number is None:
                return e.i64(0)
            memory = e.room(8 * _RUSAGE_WORDS)
            _syscall(e, number, ir.Constant(I32, 0), builder.inttoptr(memory, PTR))
            return e.load(e.offset(memory, 8 * _PREEMPTED), I64, 8)

        return types.int64(), codegen

    return preempted


@numba.njit(inline="always")
def haste_after(haste, preempted):  # type: ignore[no-untyped-def]
    """The haste of a barrier after a wait that ended in sleep, given whether a thread has been preempted."""
    return min(MOST_HASTE * CALM, haste + CALM) if preempted else max(0, haste - 1)


def make_barrier(target: Target) -> Any:
    """barrier(address, threads): returns when all `threads` threads have called it.

    At the address: int64 arrivals, which only ever grow; 64 bytes on, int64 sleepers, then the haste, and
    how often threads had been preempted. A wait that ends in sleep halves the spinning of the next ones if
    a thread has lost its CPU to others since the last such wait; CALM waits for which that is not so double
    it again. A wait that is long for another reason, as when the machine is a virtual one that its host
    pauses, says nothing about the next, and sleeping in all of them would cost a wake-up each.
    (Threads write it without care for each other; any value will do.)
    """
    pause = make_pause(target)
    sleep_while, wake_all = make_waiting(target)
    preempted = make_preempted(target)

    @numba.njit(inline="always")
    def barrier(address, threads):  # type: ignore[no-untyped-def]
        arrived = atomic_add(address, 1) + 1
        complete = (arrived + threads - 1) // threads * threads
        if arrived == complete:
            if atomic_load(address + 64) != 0:
                wake_all(address)
            return
        haste = i64_at(address + 72)
        for _ in range(SPINS >> (haste[0] // CALM)):
            if atomic_load(address) >= complete:
                haste[0] = max(0, haste[0] - 1)
                return
            pause()
        before, haste[1] = haste[1], preempted()
        haste[0] = haste_after(haste[0], haste[1] != before)
        # Sleepers count themselves before they look again, and the last to arrive looks for sleepers after
        # it has counted itself: one of the two sees the other.
        atomic_add(address + 64, 1)
        while True:
            now = atomic_load(address)
            if now >= complete:
                break
            sleep_while(address, now)
        atomic_add(address + 64, -1)

    return barrier

"""What the threads of a team do: wait for work, run a kernel together, wait again.

A waiting thread spins for a while, since the next token is usually close, and then sleeps in the kernel
of the operating system (a futex on Linux).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import Control, TeamCall
from edgellm.kernels.simd.emit import I32, I64, PTR, Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, atomic_load, call_kernel, i64_at, make_pause, yield_cpu

SPINS = 20000  # some 200 us: longer than a sampler takes between two tokens
BARRIER_SPINS = 4000
_FUTEX = {"x86_64": 202, "aarch64": 98}  # number of the system call
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private to the process


def _futex(e: Emit, number: int, address: Any, operation: int, value: Any) -> None:
    fnty = ir.FunctionType(I64, [I64], var_arg=True)
    fn = e.b.module.globals.get("syscall") or ir.Function(e.b.module, fnty, "syscall")
    word, null = e.b.inttoptr(address, PTR), ir.Constant(PTR, None)
    e.b.call(fn, [ir.Constant(I64, number), word, ir.Constant(I32, operation), value, null])


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
            if spins < BARRIER_SPINS:
                pause()
            else:
                yield_cpu()

    return work if part == "work" else run

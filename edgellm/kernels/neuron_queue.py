"""Reads that kernels start and wait for by themselves, with the rings of an io_uring (flash/uring.py).

They come in three batches: the reads that a layer has turned out to need, and those that are made ahead, of
layers with an even number and of those with an odd one. A request's tag is its batch and its number in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import TAG_BITS
from edgellm.kernels.layout import NeuronQueue as Arg
from edgellm.kernels.simd.emit import I32, I64
from edgellm.kernels.simd.scalar import helper, i32_at, i64_at, u32_at

IO_URING_ENTER = 426  # number of the system call, the same on x86-64 and aarch64
GETEVENTS = 1  # it waits for completions
WRAP = 0xFFFFFFFF  # heads and tails are counters of 32 bits


@intrinsic
def _enter(typingctx: Any, ring: Any, count: Any, wanted: Any) -> Any:
    """io_uring_enter: hand over `count` requests of the submission ring, and wait until `wanted` have been
    completed. Below 0 where it fails, or a signal comes."""

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        name = "syscall"
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        call = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        zero = ir.Constant(I64, 0)
        flags = builder.select(builder.icmp_signed(">", given[2], zero), ir.Constant(I64, GETEVENTS), zero)
        return builder.call(call, [ir.Constant(I64, IO_URING_ENTER), *given, flags, zero, zero])

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def _acquire(typingctx: Any, address: Any) -> Any:
    """The uint32 at an address that the kernel writes to."""

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = builder.load_atomic(builder.inttoptr(given[0], I32.as_pointer()), "acquire", 4, typ=I32)
        return builder.zext(word, I64)

    return types.int64(types.int64), codegen


@intrinsic
def _release(typingctx: Any, address: Any, value: Any) -> Any:
    """Write a uint32 that the kernel reads."""

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        where = builder.inttoptr(given[0], I32.as_pointer())
        builder.store_atomic(builder.trunc(given[1], I32), where, "release", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@helper
def drain(queue):  # type: ignore[no-untyped-def]
    """Take note of what has been completed."""
    a = i64_at(queue)
    pending, failed, reads = i64_at(a[Arg.PENDING]), i64_at(a[Arg.FAILED]), i64_at(a[Arg.READS])
    head, tail = _acquire(a[Arg.DONE_HEAD]), _acquire(a[Arg.DONE_TAIL])
    while head != tail:
        entry = a[Arg.DONE] + 16 * (head & a[Arg.DONE_WRAP])
        tag, got = i64_at(entry)[0], np.int64(i32_at(entry)[2])
        kind, number = tag >> TAG_BITS, tag & ((1 << TAG_BITS) - 1)
        pending[kind] -= 1
        if got != i64_at(reads[3 * kind + 1])[number]:
            failed[0] += 1
            failed[failed[0]] = tag
        head = (head + 1) & WRAP
    _release(a[Arg.DONE_HEAD], head)


@helper
def in_flight(queue):  # type: ignore[no-untyped-def]
    """Requests that have not been drained."""
    pending = i64_at(i64_at(queue)[Arg.PENDING])
    return pending[0] + pending[1] + pending[2]


@helper
def enter(queue, wanted):  # type: ignore[no-untyped-def]
    """Hand over what is in the submission ring, and wait for `wanted` completions; False where that fails."""
    a = i64_at(queue)
    left = (_acquire(a[Arg.TAIL]) - _acquire(a[Arg.HEAD])) & WRAP
    return _enter(a[Arg.RING], left, wanted) >= 0


@helper
def submit(queue, kind, first, last):  # type: ignore[no-untyped-def]
    """Start reads number first to last of a kind. What the kernel does not take now it will when somebody
    waits. Returns how many were started so far: less than `last` only where waiting for room has failed."""
    a = i64_at(queue)
    pending, reads = i64_at(a[Arg.PENDING]), i64_at(a[Arg.READS])
    offsets, lengths = i64_at(reads[3 * kind]), i64_at(reads[3 * kind + 1])
    places = i64_at(reads[3 * kind + 2])
    while first < last:
        drain(queue)
        room = a[Arg.DEPTH] - in_flight(queue)
        if room == 0:
            if not enter(queue, 1):
                break
            continue
        until = min(last, first + room)
        begin = _acquire(a[Arg.TAIL])
        for i in range(first, until):
            entry = a[Arg.ENTRIES] + 64 * ((begin + i - first) & a[Arg.WRAP])
            u32_at(entry)[1] = np.uint32(a[Arg.FILE])
            i64_at(entry)[1], i64_at(entry)[2] = offsets[i], places[i]
            u32_at(entry)[6] = np.uint32(lengths[i])
            i64_at(entry)[4] = kind << TAG_BITS | i
        _release(a[Arg.TAIL], begin + until - first)
        pending[kind] += until - first
        enter(queue, 0)
        first = until
    return first


@helper
def wait(queue, kind):  # type: ignore[no-untyped-def]
    """Return when no read of a kind is pending; False if that cannot be waited for."""
    pending = i64_at(i64_at(queue)[Arg.PENDING])
    drain(queue)
    while pending[kind] > 0:
        if not enter(queue, pending[kind]):
            return False
        drain(queue)
    return True

"""Reads memory once, as fast as it comes: the yardstick for kernels that stream weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import Stream as Arg
from edgellm.kernels.simd.emit import V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at

UNIT = 256  # bytes read in one turn of the loop


def build(target: Target) -> Callable[..., None]:
    """The kernel stream. Each thread adds up its part, so that no read can be left out."""

    @intrinsic
    def read(typingctx: Any, address: Any, units: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            start, count, out_at = values

            def body(i: Any, *sums: Any) -> list[Any]:
                base = e.offset(start, e.scaled(i, UNIT))
                if target.prefetch_bytes:
                    for line in range(0, UNIT, 64):
                        e.prefetch(e.offset(base, target.prefetch_bytes + line))
                return [
                    builder.add(s, e.load(e.offset(base, 64 * n), V16I32, 64)) for n, s in enumerate(sums)
                ]

            sums = e.loop(count, [const(V16I32, 0)] * (UNIT // 64), body)
            total = sums[0]
            for s in sums[1:]:
                total = builder.add(total, s)
            e.store(total, out_at, 64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    def stream(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        units = a[Arg.NBYTES] // UNIT
        first, last = units * thread // threads, units * (thread + 1) // threads
        read(a[Arg.ADDRESS] + first * UNIT, last - first, a[Arg.OUT] + 64 * thread)

    return stream

"""The time of day for kernels that measure: the C library's monotonic clock."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

from edgellm.kernels.simd.emit import I32, I64, PTR
from edgellm.kernels.simd.level import Target

_MONOTONIC = {"linux": 1, "darwin": 6}  # CLOCK_MONOTONIC in <time.h>


def make_clock(target: Target) -> Any:
    """Intrinsic nanoseconds(): int64 since some moment, the same for all threads; some 25 ns a call.

    struct timespec is two int64, as on every 64-bit system.
    """
    clock = _MONOTONIC["linux" if "linux" in target.triple else "darwin"]

    @intrinsic
    def nanoseconds(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            fnty = ir.FunctionType(I32, [I32, PTR])
            name = "clock_gettime"
            fn = builder.module.globals.get(name) or ir.Function(builder.module, fnty, name)
            now = alloca_once(builder, ir.ArrayType(I64, 2))
            builder.call(fn, [ir.Constant(I32, clock), builder.bitcast(now, PTR)])
            seconds, rest = (
                builder.load(builder.gep(now, [ir.Constant(I32, 0), ir.Constant(I32, i)])) for i in (0, 1)
            )
            return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), rest)

        return types.int64(), codegen

    return nanoseconds

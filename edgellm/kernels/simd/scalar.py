"""What a kernel written in Numba's Python needs beside arithmetic: typed pointers, atomics, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

from edgellm.kernels.simd.emit import F32, I32, I64, PTR, V16F16, Emit
from edgellm.kernels.simd.level import Target


def helper(function: Callable[..., Any], fastmath: bool | set[str] = False) -> Any:
    """A function that kernels call. Numba compiles it once, where inline="always" would copy its code and
    infer its types at every call; LLVM inlines it as it sees fit. fastmath: its own flags, which it keeps in
    kernels that have others."""
    options = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
    return numba.njit(fastmath=fastmath, **options)(function)


def _pointer_to(element: types.Type) -> Any:
    @intrinsic
    def as_pointer(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), codegen

    return as_pointer


# address -> pointer that Numba indexes without bounds checks or reference counts
f32_at = _pointer_to(types.float32)
u8_at = _pointer_to(types.uint8)
i8_at = _pointer_to(types.int8)
u16_at = _pointer_to(types.uint16)
u32_at = _pointer_to(types.uint32)
i32_at = _pointer_to(types.int32)
i64_at = _pointer_to(types.int64)
u64_at = _pointer_to(types.uint64)
f64_at = _pointer_to(types.float64)


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Old value of the int64 at address; adds value (sequentially consistent)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], PTR), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at address (sequentially consistent)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], PTR), "seq_cst", 8, typ=I64)

    return types.int64(types.int64), codegen


def make_pause(target: Target) -> Any:
    """Intrinsic for the CPU's spin-wait hint, where it has one."""

    @intrinsic
    def pause(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(builder, target)
            if target.triple.startswith(("x86", "i686")):
                builder.call(e.intrinsic("llvm.x86.sse2.pause", ir.VoidType(), []), [])
            elif target.triple.startswith("aarch64"):
                builder.call(e.intrinsic("llvm.aarch64.hint", ir.VoidType(), [I32]), [ir.Constant(I32, 1)])
            return context.get_dummy_value()

        return types.void(), codegen

    return pause


@intrinsic
def yield_cpu(typingctx: Any) -> Any:
    """Let another thread of the machine run: sched_yield() of the C library."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = "sched_yield"
        fn = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(I32, []), name)
        builder.call(fn, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_kernel(typingctx: Any, function: Any, args: Any, state: Any, thread: Any, threads: Any) -> Any:
    """Call a compiled kernel by its address, in Numba's native calling form."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        fnty = ir.FunctionType(I32, [PTR, PTR, I64, I64, I64, I64])
        result = alloca_once(builder, PTR)  # Numba stores its None here
        builder.call(
            builder.inttoptr(values[0], fnty.as_pointer()), [result, ir.Constant(PTR, None), *values[1:]]
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), codegen


def make_half_lane(target: Target) -> Any:
    """Intrinsic half_lane(address, i): element i of the 16 float16 at address, as float32."""

    @intrinsic
    def half_lane(typingctx: Any, address: Any, lane: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(builder, target)
            vector = e.half_to_float(e.load(args[0], V16F16, 2))
            return builder.extract_element(vector, args[1])

        return types.float32(types.int64, types.int64), codegen

    return half_lane


@intrinsic
def u32_as_f32(typingctx: Any, bits: Any) -> Any:
    """The float32 whose bits are the uint32 given."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen

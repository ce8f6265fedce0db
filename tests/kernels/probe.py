"""Compiles one vector primitive into a kernel of its own, so that a test can call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.compile import compile_function, function_assembly, link
from edgellm.kernels.memory import address
from edgellm.kernels.simd.emit import Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at
from edgellm.kernels.team import call_kernel

EmitBody = Callable[[Emit, Any, Any, Any], None]


def _kernel(target: Target, emit: EmitBody) -> Callable[..., None]:
    @intrinsic
    def body(tc: Any, x: Any, y: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(Emit(builder, target), *values)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    def kernel(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        body(a[0], a[1], a[2])

    return kernel


def probe_assembly(target: Target, emit: EmitBody) -> str:
    """Assembly of emit(e, x address, y address, out address) for any target."""
    return function_assembly(_kernel(target, emit), "probe", target)


def probe(target: Target, emit: EmitBody) -> Callable[..., None]:
    """f(x, y, out): runs emit(e, x address, y address, out address), compiled for `target`."""
    code = link([compile_function(_kernel(target, emit), "probe", target)], target)
    function = code.get_function_address("probe")

    def call(x: Any, y: Any, out: Any) -> None:
        args = np.array([address(x), address(y), address(out)], np.int64)
        call_kernel(function, address(args))

    return call

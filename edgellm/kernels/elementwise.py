"""Ops on each element of a row: activations, add, scale, softcap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import Elementwise as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.simd.emit import F32, V16F32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f64_at, i64_at


def _silu(e: Emit, x: Any) -> Any:
    return e.b.fmul(x, e.sigmoid(x))


def _gelu_tanh(e: Emit, x: Any) -> Any:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))"""
    b = e.b
    cube = b.fmul(b.fmul(x, x), x)
    inner = b.fmul(e.fma(cube, const(V16F32, 0.044715), x), const(V16F32, 1.5957691216057308))
    return b.fmul(x, e.sigmoid(inner))


def _gelu(e: Emit, x: Any) -> Any:
    """x / 2 (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7."""
    b = e.b
    z = b.fmul(
        b.call(e.intrinsic("llvm.fabs.v16f32", V16F32, [V16F32]), [x]), const(V16F32, 0.7071067811865476)
    )
    one = const(V16F32, 1.0)
    t = b.fdiv(one, e.fma(z, const(V16F32, 0.3275911), one))
    p = const(V16F32, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = e.fma(p, t, const(V16F32, c))
    tail = b.fmul(b.fmul(p, t), e.exp(b.fneg(b.fmul(z, z))))  # 1 - erf(|x| / sqrt 2)
    negative = b.fcmp_ordered("<", x, const(V16F32, 0.0))
    phi = b.fmul(const(V16F32, 0.5), b.select(negative, tail, b.fsub(const(V16F32, 2.0), tail)))
    return b.fmul(x, phi)


def _relu(e: Emit, x: Any) -> Any:
    return e.max(x, const(V16F32, 0.0))


def _relu2(e: Emit, x: Any) -> Any:
    return e.b.fmul(_relu(e, x), _relu(e, x))


ACTIVATIONS: dict[str, Callable[[Emit, Any], Any]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": _relu,
    "relu2": _relu2,
}


def emit_function(e: Emit, name: str, x: Any, y: Any, factor: Any) -> Any:
    """f(x, y) of 16 elements: add, scale, softcap, above (x, or 0 up to a factor) or an activation."""
    b = e.b
    if name == "add":
        return b.fadd(x, y)
    if name == "scale":
        return b.fmul(x, factor)
    if name == "softcap":
        return e.softcap(x, factor)
    if name == "above":
        return b.select(b.fcmp_ordered(">", x, factor), x, const(V16F32, 0.0))
    return ACTIVATIONS[name](e, x)


def build(target: Target, function: str) -> Callable[..., None]:
    """The kernel elementwise for one function. Threads share out the vectors of 16 of all tokens."""

    @intrinsic
    def apply(typingctx: Any, x: Any, y: Any, out: Any, vectors: Any, factor: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            x, y, out, vectors, factor = values
            splat = e.splat(builder.fptrunc(factor, F32))
            second = function == "add"

            def body(i: Any) -> list[Any]:
                at = e.scaled(i, 64)
                u = e.load(e.offset(x, at), V16F32, 4)
                v = e.load(e.offset(y, at), V16F32, 4) if second else None
                e.store(emit_function(e, function, u, v, splat), e.offset(out, at), 4)
                return []

            e.loop(vectors, [], body)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, types.float64), codegen

    def elementwise(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, vectors = s[State.TOKENS], a[Arg.VECTORS]
        factor = f64_at(args)[Arg.FACTOR]
        x_row = a[Arg.X_PRIVATE] * thread if tokens == 1 else 0
        y_row = a[Arg.Y_PRIVATE] * thread if tokens == 1 else 0
        first, last = tokens * vectors * thread // threads, tokens * vectors * (thread + 1) // threads
        while first < last:
            t, v = first // vectors, first % vectors
            count = min(vectors - v, last - first)
            apply(
                a[Arg.X] + (t + x_row) * a[Arg.X_STRIDE] + 64 * v,
                a[Arg.Y] + (t + y_row) * a[Arg.Y_STRIDE] + 64 * v,
                a[Arg.OUT] + t * a[Arg.OUT_STRIDE] + 64 * v,
                count,
                factor,
            )
            first += count

    return elementwise

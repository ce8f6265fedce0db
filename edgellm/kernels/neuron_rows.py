"""Rows of up (or gate) of some neurons, times the inputs of an FFN: the half of a sparse FFN before `down`.

    act[t, i] *= W_i x_t + bias_i        for the neurons i of the list, where act[t, i] is not 0
    act[t, i]  = f(W_i x_t + bias_i)     with an activation: of gates whose neurons were predicted

Products are float32. Rounded inputs and trits are whole numbers, of which a float32 holds any sum of a row
exactly; scales come last, in the order in which linear_q multiplies, so that both agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import NeuronRows as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.neuron_codes import SCALED, UNIT, UNIT_BYTES, activations, codes, scale
from edgellm.kernels.simd.emit import F32, I32, V16F32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at

CHAINS = 2  # independent sums


def make_dot(target: Target, codec: str, rounded: bool, activation: str | None) -> Any:
    """Intrinsic dot(vector, x, units, x scale, weight scale, factor, bias) -> float32; scales are addresses.
    With an activation its value."""

    @intrinsic
    def dot(tc: Any, vector: Any, x: Any, units: Any, xs: Any, ws: Any, factor: Any, bias: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _emit_dot(Emit(builder, target), *values, codec, rounded, activation)

        arguments = (*[types.int64] * 5, types.float64, types.float32)
        return types.float32(*arguments), codegen

    return dot


def _emit_dot(
    e: Emit, vector: Any, x: Any, units: Any, x_scale: Any, weight_scale: Any, factor: Any, bias: Any,
    codec: str, rounded: bool, activation: str | None,
) -> Any:  # fmt: skip
    b = e.b
    unit, nbytes, width = UNIT[codec], UNIT_BYTES[codec], 1 if rounded else 4

    def body(i: Any, *sums: Any) -> list[Any]:
        at = e.offset(vector, e.scaled(i, nbytes))
        inputs = e.offset(x, e.scaled(i, unit * width))
        values = codes(e, at, codec)
        products = list(sums)
        if codec in SCALED:  # the unit's own sum, scaled
            first = b.fmul(values[0], activations(e, inputs, rounded))
            own = e.fma(values[1], activations(e, e.offset(inputs, 16 * width), rounded), first)
            return [e.fma(own, scale(e, at), products[0]), *products[1:]]
        for j, value in enumerate(values):
            c = j % CHAINS
            products[c] = e.fma(value, activations(e, e.offset(inputs, 16 * j * width), rounded), products[c])
        return products

    sums = e.loop(units, [const(V16F32, 0.0)] * CHAINS, body)
    total = e.reduce(b.fadd(*sums), b.fadd)
    if rounded:
        total = b.fmul(total, e.load(x_scale, F32, 4))
    scaled = b.fptrunc(factor, F32) if codec in SCALED else e.load(weight_scale, F32, 1)
    lanes = e.fma(e.splat(total), e.splat(scaled), e.splat(bias))
    if activation:
        lanes = ACTIVATIONS[activation](e, lanes)
    return b.extract_element(lanes, ir.Constant(I32, 0))


def build(target: Target, codec: str, rounded: int = 0, activation: str | None = None) -> Callable[..., None]:
    """The kernel neuron_rows. Threads share out the neurons of the list."""
    dot = make_dot(target, codec, bool(rounded), activation)
    always = activation is not None

    def neuron_rows(args: int, state: int, thread: int, threads: int) -> None:
        a, s, listed = i64_at(args), i64_at(state), i64_at(i64_at(args)[Arg.LIST])
        tokens, count, stride = s[State.TOKENS], listed[0], a[Arg.X_STRIDE]
        factor = f64_at(args)[Arg.FACTOR]
        x = a[Arg.X]
        if tokens == 1:
            x += a[Arg.X_PRIVATE] * thread * stride
        for i in range(count * thread // threads, count * (thread + 1) // threads):
            neuron, vector = listed[1 + 2 * i], listed[2 + 2 * i] + a[Arg.VECTOR]
            bias = f32_at(a[Arg.BIAS])[neuron] if a[Arg.BIAS] != 0 else f32_at(s[State.ZERO])[0]
            for t in range(tokens):
                act = f32_at(a[Arg.ACT] + t * a[Arg.ACT_STRIDE])
                old = act[neuron]
                if always or old != 0:
                    row = x + t * stride
                    at = row + a[Arg.X_SCALE]
                    value = dot(vector, row, a[Arg.UNITS], at, vector + a[Arg.WEIGHT_SCALE], factor, bias)
                    act[neuron] = value if always else old * value

    return neuron_rows

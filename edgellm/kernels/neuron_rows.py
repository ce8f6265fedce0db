"""Rows of up (or gate) of some neurons, times the inputs of an FFN: the half of a sparse FFN before `down`.

    act[t, i] *= W_i x_t + bias_i        for the neurons i of the list, where act[t, i] is not 0
    act[t, i]  = f(W_i x_t + bias_i)     the same with an activation: of gates whose neurons were predicted

The inputs are quantised rows (layout.ActLayout), as for linear_q: dot products of blocks are exact in
integers. Trits with rounded inputs have one scale on either side: their sums over whole rows are integers,
and the result is that of linear_q to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import NeuronRows as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.neuron_codes import (
    GROUP,
    MOST,
    SCALED,
    UNIT,
    UNIT_BYTES,
    ZERO,
    code_bytes,
    first_two,
    scales,
    two_scales,
)
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import F32, I32, I64, V16F32, V16I32, V64I8, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, f32_at, f64_at, i64_at

AHEAD = 2  # neurons that prefetching is ahead, on a Zen 4; into the second cache, which takes more at a time
BLOCKS = 2 * GROUP  # whose scales are loaded together
CHUNK = 8  # neurons that a thread takes at a time


def make_dot(target: Target, codec: str, planes: int, whole: bool, activation: str | None) -> Any:
    """Intrinsic dot(args, vector, next vector, x row, bias) -> float32; with an activation its value."""

    @intrinsic
    def dot(tc: Any, args: Any, vector: Any, following: Any, x: Any, bias: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            _, vector, following, x, bias = given
            one = _Dot(Emit(builder, target), codec, planes, given[0])
            return one.emit(vector, following, x, bias, whole, activation)

        return types.float32(*[types.int64] * 4, types.float32), codegen

    return dot


class _Dot:
    """Emits one dot product of a vector in a slot and a row of activations."""

    def __init__(self, e: Emit, codec: str, planes: int, args: Any):
        self.e, self.codec, self.planes = e, codec, planes

        def arg(slot: int) -> Any:
            return e.load(e.offset(args, 8 * slot), I64, 8)

        self.units, self.low = arg(Arg.UNITS), arg(Arg.ACT_LOW)
        self.scale, self.sums = arg(Arg.ACT_SCALE), arg(Arg.ACT_FSUM)
        self.weight_scale = arg(Arg.WEIGHT_SCALE)
        self.factor = e.b.bitcast(arg(Arg.FACTOR), ir.DoubleType())

    def emit(
        self, vector: Any, following: Any, x: Any, bias: Any, whole: bool, activation: str | None
    ) -> Any:
        e, b = self.e, self.e.b
        heads = e.scaled(self.units, 4) if self.codec in SCALED else e.i64(0)
        codes, ahead = b.add(vector, heads), b.add(following, heads)
        if whole:
            total = self._whole(codes, ahead, x)
        else:
            total = self._blocks(vector, codes, following, ahead, x)
        if self.codec in SCALED:
            factor = b.fptrunc(self.factor, F32)
        else:
            factor = e.load(b.add(vector, self.weight_scale), F32)
        lanes = e.fma(e.splat(total), e.splat(factor), e.splat(bias))
        if activation:
            lanes = ACTIVATIONS[activation](e, lanes)
        return b.extract_element(lanes, ir.Constant(I32, 0))

    def _whole(self, codes: Any, ahead: Any, x: Any) -> Any:
        """The sum of a row as an integer, times the activations' one scale."""
        e, b = self.e, self.e.b
        ones = const(V64I8, ZERO[self.codec])

        def body(i: Any, total: Any, zeros: Any) -> list[Any]:
            at = e.scaled(i, UNIT_BYTES[self.codec])
            e.prefetch(e.offset(ahead, at))
            inputs = e.load(e.offset(x, e.scaled(i, UNIT)), V64I8)
            found = code_bytes(e, b.add(codes, at), self.codec)
            return [
                dot4(e, total, found, inputs, MOST[self.codec]),
                dot4(e, zeros, ones, inputs, ZERO[self.codec]),
            ]

        total, zeros = e.loop(self.units, [const(V16I32, 0)] * 2, body)
        number = e.reduce(b.sub(total, zeros), b.add)
        return b.fmul(b.sitofp(number, F32), e.load(b.add(x, self.scale), F32, 4))

    def _blocks(self, vector: Any, codes: Any, following: Any, ahead: Any, x: Any) -> Any:
        """The sum over blocks of their scales times integers."""
        e, b = self.e, self.e.b
        nbytes = UNIT_BYTES[self.codec]

        def factors(block: Any) -> tuple[Any, Any]:
            """Of 16 blocks: weights' scales times activations', and the zero point's share."""
            at = e.scaled(block, 4)
            both = e.load(e.offset(x, self.scale, at), V16F32, 4)
            sums = e.load(e.offset(x, self.sums, at), V16F32, 4)
            if self.codec not in SCALED:
                return both, sums
            own = scales(e, e.offset(vector, e.scaled(block, 2)))
            return b.fmul(both, own), b.fmul(sums, own)

        def unit(number: Any, weights: Any) -> Any:
            """Dot products of 16 times 4 codes, as float32 before scaling."""
            inputs = e.offset(x, e.scaled(number, UNIT))
            rows = [inputs] if self.planes == 1 else [inputs, b.add(inputs, self.low)]
            parts = [dot4(e, const(V16I32, 0), weights, e.load(row, V64I8), MOST[self.codec]) for row in rows]
            total = parts[0] if self.planes == 1 else b.add(b.shl(parts[0], const(V16I32, 8)), parts[1])
            return b.sitofp(total, V16F32)

        def group(i: Any, first: Any, second: Any, zeros: Any) -> list[Any]:
            found, share = factors(e.scaled(i, BLOCKS))
            totals = [first, second]
            if self.codec in SCALED:
                e.prefetch(e.offset(following, e.scaled(i, 2 * BLOCKS)), 2)
            for line in range(0, GROUP * nbytes, 64):
                e.prefetch(e.offset(ahead, e.scaled(i, GROUP * nbytes), line), 2)
            for j in range(GROUP):
                number = e.offset(e.scaled(i, GROUP), j)
                weights = code_bytes(e, e.offset(codes, e.scaled(number, nbytes)), self.codec)
                totals[j % 2] = e.fma(unit(number, weights), two_scales(e, found, j), totals[j % 2])
            return [*totals, b.fadd(zeros, share)]

        groups = b.sdiv(self.units, e.i64(GROUP))
        state = e.loop(groups, [const(V16F32, 0.0)] * 3, group)
        done = e.scaled(groups, GROUP)

        def single(i: Any, first: Any, second: Any, zeros: Any) -> list[Any]:
            number = b.add(done, i)
            found, share = factors(e.scaled(number, 2))
            weights = code_bytes(e, e.offset(codes, e.scaled(number, nbytes)), self.codec)
            total = e.fma(unit(number, weights), two_scales(e, found, 0), first)
            return [total, second, b.fadd(zeros, first_two(e, share))]

        first, second, zeros = e.loop(b.sub(self.units, done), state, single)
        lanes = e.fma(zeros, const(V16F32, -float(ZERO[self.codec])), b.fadd(first, second))
        return e.reduce(lanes, b.fadd)


def build(
    target: Target, codec: str, planes: int, rounded: int = 0, activation: str | None = None
) -> Callable[..., None]:
    """The kernel neuron_rows. Threads take neurons of the list as they get on. rounded: rows of activations
    have a single scale."""
    whole = bool(rounded) and codec not in SCALED
    dot = make_dot(target, codec, planes, whole, activation)
    replaces = activation is not None

    def neuron_rows(args: int, state: int, thread: int, threads: int) -> None:
        a, s, listed = i64_at(args), i64_at(state), i64_at(i64_at(args)[Arg.LIST])
        tokens, count, stride = s[State.TOKENS], listed[0], a[Arg.INPUT_STRIDE]
        x, threshold = a[Arg.INPUT], np.float32(f64_at(args)[Arg.THRESHOLD])
        if tokens == 1:
            x += a[Arg.INPUT_PRIVATE] * thread * stride
        first = atomic_add(a[Arg.NEXT], CHUNK)
        while first < count:
            for i in range(first, min(first + CHUNK, count)):
                neuron, vector = listed[1 + 2 * i], listed[2 + 2 * i] + a[Arg.VECTOR]
                following = listed[2 + 2 * min(i + AHEAD, count - 1)] + a[Arg.VECTOR]
                bias = f32_at(a[Arg.BIAS])[neuron] if a[Arg.BIAS] != 0 else f32_at(s[State.ZERO])[0]
                for t in range(tokens):
                    act = f32_at(a[Arg.ACT] + t * a[Arg.ACT_STRIDE])
                    old = act[neuron]
                    if old != 0:
                        value = dot(args, vector, following, x + t * stride, bias)
                        if replaces:
                            act[neuron] = np.float32(0) if value <= threshold else value
                        else:
                            act[neuron] = old * value
            first = atomic_add(a[Arg.NEXT], CHUNK)

    return neuron_rows

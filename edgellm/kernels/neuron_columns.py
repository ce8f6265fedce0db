"""Columns of down of some neurons, times what the neurons fire: the other half of a sparse FFN.

    out[t] = sum over the neurons i of the list of hidden[t, i] W_i, + bias, + out[t] before

in the order of the list, whatever thread or place a neuron is in, so that a result does not depend on a
cache. As for neuron_rows, sums of whole numbers are exact and scales come last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import NeuronColumns as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.neuron_codes import SCALED, UNIT, UNIT_BYTES, codes, scale
from edgellm.kernels.simd.emit import F32, V16F32, Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i8_at, i64_at

ROWS_AT_ONCE = 1024  # of the result, whose sums stay in a core's nearest cache while columns pass by
PREFETCH_LINES = 4  # of the next column, which may be anywhere


def make_axpy(target: Target, codec: str) -> Any:
    """Intrinsic axpy(vector, h, units, sums, next vector): sums += h times a piece of a column."""

    @intrinsic
    def axpy(tc: Any, vector: Any, h: Any, units: Any, sums: Any, following: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            vector, h, units, sums, following = values
            times = e.splat(h)
            for line in range(PREFETCH_LINES):
                e.prefetch(e.offset(following, 64 * line))

            def body(i: Any) -> list[Any]:
                at = e.offset(vector, e.scaled(i, UNIT_BYTES[codec]))
                to = e.offset(sums, e.scaled(i, 4 * UNIT[codec]))
                factor = e.b.fmul(times, scale(e, at)) if codec in SCALED else times
                for j, values in enumerate(codes(e, at, codec)):
                    place = e.offset(to, 64 * j)
                    e.store(e.fma(values, factor, e.load(place, V16F32, 64)), place, 64)
                return []

            e.loop(units, [], body)
            return context.get_dummy_value()

        arguments = (types.int64, types.float32, types.int64, types.int64, types.int64)
        return types.void(*arguments), codegen

    return axpy


def make_room(target: Target) -> Any:
    """Intrinsic room(): address of ROWS_AT_ONCE float32 on the stack."""

    @intrinsic
    def room(tc: Any) -> Any:
        return types.int64(), lambda context, builder, *_: Emit(builder, target).room(4 * ROWS_AT_ONCE)

    return room


def make_finish(target: Target, codec: str, rounded: bool) -> Any:
    """Intrinsic finish(sums, out, bias, old, hidden scale, row scales, factor, vectors, keep, biased): out =
    scaled sums + old + bias; keep and biased are 0 where old or bias is a single vector of zeros."""
    own_scales = codec not in SCALED

    @intrinsic
    def finish(
        tc: Any, sums: Any, out: Any, bias: Any, old: Any, hidden_scale: Any, row_scales: Any, factor: Any,
        vectors: Any, keep: Any, biased: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            b = e.b
            sums, out, bias, old, hidden_scale, row_scales, factor, vectors, keep, biased = values
            one = e.splat(b.fptrunc(factor, F32))

            def body(i: Any) -> list[Any]:
                at = e.scaled(i, 64)
                total = e.load(e.offset(sums, at), V16F32, 64)
                if rounded:
                    total = b.fmul(total, e.splat_f32(hidden_scale))
                scales = e.load(e.offset(row_scales, at), V16F32, 4) if own_scales else one
                there = e.load(e.offset(old, b.mul(at, keep)), V16F32, 4)
                base = b.fadd(there, e.load(e.offset(bias, b.mul(at, biased)), V16F32, 4))
                e.store(e.fma(total, scales, base), e.offset(out, at), 4)
                return []

            e.loop(vectors, [], body)
            return context.get_dummy_value()

        arguments = (*[types.int64] * 6, types.float64, *[types.int64] * 3)
        return types.void(*arguments), codegen

    return finish


def build(target: Target, codec: str, rounded: int = 0) -> Callable[..., None]:
    """The kernel neuron_columns. Threads share out the rows of the result."""
    axpy, room = make_axpy(target, codec), make_room(target)
    finish = make_finish(target, codec, bool(rounded))
    unit, nbytes = UNIT[codec], UNIT_BYTES[codec]

    def neuron_columns(args: int, state: int, thread: int, threads: int) -> None:
        a, s, listed = i64_at(args), i64_at(state), i64_at(i64_at(args)[Arg.LIST])
        tokens, count, units = s[State.TOKENS], listed[0], a[Arg.UNITS]
        factor = f64_at(args)[Arg.FACTOR]
        sums, zero = room(), s[State.ZERO]
        first, last = units * thread // threads, units * (thread + 1) // threads
        step = ROWS_AT_ONCE // unit
        while first < last:
            some = min(step, last - first)
            vectors, row, offset = some * unit // 16, first * unit, a[Arg.VECTOR] + first * nbytes
            for t in range(tokens):
                copy = a[Arg.HIDDEN_PRIVATE] * thread if tokens == 1 else t
                hidden = a[Arg.HIDDEN] + copy * a[Arg.HIDDEN_STRIDE]
                for i in range(16 * vectors):
                    f32_at(sums)[i] = np.float32(0)
                for i in range(count):
                    neuron, following = listed[1 + 2 * i], listed[2 + 2 * min(i + 1, count - 1)]
                    if rounded:
                        h = np.float32(i8_at(hidden)[neuron])
                    else:
                        h = f32_at(hidden)[neuron]
                    if h != 0:
                        axpy(listed[2 + 2 * i] + offset, h, some, sums, following + offset)
                out = a[Arg.OUT] + t * a[Arg.OUT_STRIDE] + 4 * row
                bias, biased = (a[Arg.BIAS] + 4 * row, 1) if a[Arg.BIAS] != 0 else (zero, 0)
                old, kept = (out, 1) if a[Arg.ACCUMULATE] != 0 else (zero, 0)
                scale_at = hidden + a[Arg.HIDDEN_SCALE]
                scales = a[Arg.ROW_SCALES] + 4 * row
                finish(sums, out, bias, old, scale_at, scales, factor, vectors, kept, biased)
            first += some

    return neuron_columns

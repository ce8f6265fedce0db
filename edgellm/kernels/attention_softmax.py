"""Softmax over scores that come block by block, and what else attention does with one row of numbers.

Online softmax (Milakov and Gimelshein, arXiv:1805.02867; used for attention by Dao et al.,
arXiv:2205.14135): a row keeps its largest score so far and the sum of exponentials relative to it; when
the largest grows, what was summed before is scaled down.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.attention_memory import LARGEST, MASKED, SCALING, SUMS
from edgellm.kernels.simd.emit import F32, I32, LANES, V16F16, V16F32, V16I8, V16I32, Emit, const
from edgellm.kernels.simd.level import Target

LEVELS = 32512.0  # steps of a number in two planes of int8: 256 * 127


def make_softmax(target: Target) -> Any:
    """Intrinsic softmax(row, vectors, first, last, cap, stats): scores to exponentials, in place.

    Of 16 * vectors scores those at first <= p < last count, the others become 0. cap: soft cap, or 0.
    stats: the row's state. Its scaling is what earlier results have to be multiplied by.
    """

    @intrinsic
    def softmax(tc: Any, row: Any, vectors: Any, first: Any, last: Any, cap: Any, stats: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _emit_softmax(Emit(builder, target), *values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float64, types.int64), codegen

    return softmax


def _emit_softmax(e: Emit, row: Any, vectors: Any, first: Any, last: Any, cap: Any, stats: Any) -> None:
    b = e.b
    lanes = ir.Constant(V16I32, list(range(LANES)))
    low, high = (e.splat(b.trunc(v, I32)) for v in (first, last))
    limit = e.splat(b.fptrunc(cap, F32))
    floor, zero = const(V16F32, MASKED), const(V16F32, 0.0)
    largest, sums = (e.load(e.offset(stats, at), V16F32, 64) for at in (LARGEST, SUMS))

    def masked(n: Any, best: Any, capped: bool) -> list[Any]:
        at = e.offset(row, e.scaled(n, 64))
        s = e.load(at, V16F32, 64)
        if capped:
            s = e.softcap(s, limit)
        p = b.add(lanes, e.splat(b.trunc(e.scaled(n, LANES), I32)))
        seen = b.and_(b.icmp_signed(">=", p, low), b.icmp_signed("<", p, high))
        s = b.select(seen, s, floor)
        e.store(s, at, 64)
        return [e.max(best, s)]

    # Two loops, of which one runs: the exponential of a soft cap nobody asked for is not free.
    none = e.i64(0)
    use_cap = b.fcmp_ordered(">", cap, ir.Constant(cap.type, 0.0))
    with_cap, without = b.select(use_cap, vectors, none), b.select(use_cap, none, vectors)
    (best,) = e.loop(with_cap, [floor], lambda n, best: masked(n, best, True))
    (best,) = e.loop(without, [best], lambda n, best: masked(n, best, False))
    top = e.max(e.splat(e.reduce(best, e.max)), largest)

    def exponent(n: Any, total: Any) -> list[Any]:
        at = e.offset(row, e.scaled(n, 64))
        s = e.load(at, V16F32, 64)
        p = b.select(b.fcmp_ordered(">", s, floor), e.exp(b.fsub(s, top)), zero)
        e.store(p, at, 64)
        return [b.fadd(total, p)]

    scaling = e.exp(b.fsub(largest, top))
    (total,) = e.loop(vectors, [b.fmul(sums, scaling)], exponent)
    for value, at in ((top, LARGEST), (total, SUMS), (scaling, SCALING)):
        e.store(value, e.offset(stats, at), 64)


def make_planes(target: Target, scaled: bool) -> Any:
    """Intrinsic planes(row, vectors, scales, high, low, out): a row of float32 as two planes of int8.

    x = scale * (256 * high + low) with one scale for the row, max |x| / 32512. scaled: the numbers are
    taken times the float16 at `scales`, one each, where they are not 0. At `out`, 64 bytes apart and each
    16 times over: the scale, float32, and 128 times the sum of the integers, int32.
    """

    @intrinsic
    def planes(tc: Any, row: Any, vectors: Any, scales: Any, high: Any, low: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _emit_planes(Emit(builder, target), *values, scaled=scaled)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return planes


def _emit_planes(
    e: Emit, row: Any, vectors: Any, scales: Any, high: Any, low: Any, out: Any, *, scaled: bool
) -> None:
    b = e.b
    zero = const(V16F32, 0.0)
    absolute = e.intrinsic("llvm.fabs.v16f32", V16F32, [V16F32])

    def number(n: Any) -> Any:
        x = e.load(e.offset(row, e.scaled(n, 64)), V16F32, 64)
        if scaled:  # what is behind the last position may have any scale
            factor = e.half_to_float(e.load(e.offset(scales, e.scaled(n, 32)), V16F16, 32))
            x = b.select(b.fcmp_ordered("==", x, zero), zero, b.fmul(x, factor))
        return x

    (best,) = e.loop(vectors, [zero], lambda n, best: [e.max(best, b.call(absolute, [number(n)]))])
    top = e.splat(e.reduce(best, e.max))
    empty = b.fcmp_ordered("==", top, zero)
    inverse = b.select(empty, zero, b.fdiv(const(V16F32, LEVELS), top))

    def body(n: Any, total: Any) -> list[Any]:
        codes = b.fptosi(e.round(b.fmul(number(n), inverse)), V16I32)
        upper = b.ashr(b.add(codes, const(V16I32, 128)), const(V16I32, 8))
        lower = b.sub(codes, b.shl(upper, const(V16I32, 8)))
        for value, plane in ((upper, high), (lower, low)):
            e.store(b.trunc(value, V16I8), e.offset(plane, e.scaled(n, 16)), 16)
        return [b.add(total, codes)]

    (total,) = e.loop(vectors, [const(V16I32, 0)], body)
    e.store(b.fmul(top, const(V16F32, 1.0 / LEVELS)), out, 4)
    e.store(b.shl(e.splat(e.reduce(total, b.add)), const(V16I32, 7)), e.offset(out, 64), 4)


def make_combine(target: Target) -> Any:
    """Intrinsic combine(largest, sums, vectors): of 16 * vectors partial softmaxes, each given by its largest
    score and its sum of exponentials, the factors by which their results add up to the whole; they
    replace `largest`. Unused ones have MASKED and 0."""

    @intrinsic
    def combine(tc: Any, largest: Any, sums: Any, vectors: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, b = Emit(builder, target), builder
            largest, sums, vectors = values

            def at(base: Any, n: Any) -> Any:
                return e.offset(base, e.scaled(n, 64))

            def most(n: Any, best: Any) -> list[Any]:
                return [e.max(best, e.load(at(largest, n), V16F32, 64))]

            (best,) = e.loop(vectors, [const(V16F32, MASKED)], most)
            top = e.splat(e.reduce(best, e.max))

            def weigh(n: Any, total: Any) -> list[Any]:
                weight = e.exp(b.fsub(e.load(at(largest, n), V16F32, 64), top))
                e.store(weight, at(largest, n), 64)
                return [e.fma(weight, e.load(at(sums, n), V16F32, 64), total)]

            (total,) = e.loop(vectors, [const(V16F32, 0.0)], weigh)
            factor = b.fdiv(const(V16F32, 1.0), e.splat(e.reduce(total, b.fadd)))

            def normalise(n: Any) -> list[Any]:
                e.store(b.fmul(e.load(at(largest, n), V16F32, 64), factor), at(largest, n), 64)
                return []

            e.loop(vectors, [], normalise)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    return combine

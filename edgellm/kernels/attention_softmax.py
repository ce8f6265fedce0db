"""Softmax over scores that come block by block, and what else attention does with one row of numbers.

Online softmax (Milakov and Gimelshein, arXiv:1805.02867; used for attention by Dao et al.,
arXiv:2205.14135): a row keeps its largest score so far and the sum of exponentials relative to it; when
the largest grows, what was summed before is scaled down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.attention_loops import over_rows
from edgellm.kernels.attention_memory import LARGEST, MASKED, PLANES, SCALING, STATS, SUMS
from edgellm.kernels.kv_layout import CHUNK
from edgellm.kernels.simd.emit import F32, I32, LANES, V16F16, V16F32, V16I8, V16I32, Emit, const
from edgellm.kernels.simd.level import Target

VECTORS = CHUNK // LANES
LEVELS = 32512.0  # steps of a number in two planes of int8: 256 * 127


def make_softmax(target: Target, group: int) -> Any:
    """Intrinsic softmax(rows, first, last, cap, stats): scores of one chunk, (group, CHUNK) float32, to
    exponentials in place; those outside of first <= p < last to 0. See emit_softmax."""

    @intrinsic
    def softmax(tc: Any, rows: Any, first: Any, last: Any, cap: Any, stats: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            rows, first, last, cap, stats = values
            e = Emit(builder, target)
            emit_softmax(e, rows, group, lambda row: (first, last), cap, stats, last, few=1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3, types.float64, types.int64), codegen

    return softmax


def emit_softmax(
    e: Emit,
    scores: Any,
    count: int,
    seen: Callable[[Any], tuple[Any, Any]],
    cap: Any,
    stats: Any,
    end: Any,
    few: int,
) -> None:
    """Online softmax of `count` rows of CHUNK scores, in place.

    seen(row): first and last + 1 of the positions that a row sees; cap: soft cap, or 0; stats: the rows'
    states. A row's scaling is what earlier results have to be multiplied by. end: no row sees a position
    from there on; up to 16 * few there is less to do.
    """
    _emit_softcap(e, scores, e.i64(count * VECTORS), cap)
    most = 4 if e.target.wide else 1

    def all_rows(vectors: int) -> None:
        def some(start: Any, rows: int) -> None:
            _emit_rows(
                e,
                vectors,
                [e.offset(scores, e.scaled(start, 4 * CHUNK), 4 * CHUNK * r) for r in range(rows)],
                [seen(e.offset(start, r)) for r in range(rows)],
                [e.offset(stats, e.scaled(start, STATS), STATS * r) for r in range(rows)],
            )

        over_rows(e, count, most, some)

    with e.b.if_else(e.b.icmp_signed("<=", end, e.i64(few * LANES))) as (then, otherwise):
        with then:
            all_rows(few)
        with otherwise:
            all_rows(VECTORS)


def _emit_softcap(e: Emit, at: Any, vectors: Any, cap: Any) -> None:
    """cap * tanh(s / cap) of scores in place, if cap is not 0."""
    b = e.b
    limit = e.splat(b.fptrunc(cap, F32))

    def body(n: Any) -> list[Any]:
        to = e.offset(at, e.scaled(n, 64))
        e.store(e.softcap(e.load(to, V16F32, 64), limit), to, 64)
        return []

    wanted = b.fcmp_ordered(">", cap, ir.Constant(cap.type, 0.0))
    e.loop(b.select(wanted, vectors, e.i64(0)), [], body)


def _emit_rows(e: Emit, vectors: int, rows: list[Any], seen: list[tuple[Any, Any]], stats: list[Any]) -> None:
    """A few rows, step by step for all of them, so that one's latency hides another's. Scores behind the
    first `vectors` become 0 unseen."""
    b = e.b
    floor, zero = const(V16F32, MASKED), const(V16F32, 0.0)
    largest, sums = ([e.load(e.offset(at, o), V16F32, 64) for at in stats] for o in (LARGEST, SUMS))
    scores, masks = [], []
    for row, (first, last) in zip(rows, seen, strict=True):
        low, high = (e.splat(b.trunc(v, I32)) for v in (first, last))
        for n in range(vectors):
            p = const(V16I32, list(range(n * LANES, (n + 1) * LANES)))
            masks.append(b.and_(b.icmp_signed(">=", p, low), b.icmp_signed("<", p, high)))
            scores.append(b.select(masks[-1], e.load(e.offset(row, 64 * n), V16F32, 64), floor))
    tops = [reduce(e.max, scores[r * vectors : (r + 1) * vectors], large) for r, large in enumerate(largest)]
    tops = [e.reduce_all(top, e.max) for top in tops]
    # One exponential for the scalings of all rows: row r's in lane r.
    change = zero
    for r, (large, top) in enumerate(zip(largest, tops, strict=True)):
        lane = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [int(i == r) for i in range(LANES)])
        change = b.select(lane, b.fsub(large, top), change)
    scalings = e.exp(change)
    for r, (row, at, top) in enumerate(zip(rows, stats, tops, strict=True)):
        parts = []
        for n in range(vectors):
            i = r * vectors + n
            parts.append(b.select(masks[i], e.exp(b.fsub(scores[i], top)), zero))
            e.store(parts[-1], e.offset(row, 64 * n), 64)
        for n in range(vectors, VECTORS):
            e.store(zero, e.offset(row, 64 * n), 64)
        scaling = e.shuffle(scalings, [r] * LANES)
        total = e.fma(sums[r], scaling, reduce(b.fadd, parts))
        for value, o in ((top, LARGEST), (total, SUMS), (scaling, SCALING)):
            e.store(value, e.offset(at, o), 64)


def make_planes(target: Target, vectors: int, rows: int, scaled: bool) -> Any:
    """Intrinsic planes(row, scales, out): rows of 16 * vectors float32 as two planes of int8.

    x = scale * (256 * high + low) with one scale for a row, max |x| / 32512. scaled: the numbers are taken
    times the float16 at `scales`, one for each column, where they are not 0. A row at `out`: the high
    plane, the low one, then 16 times over the scale, float32, and 128 times the sum of the integers, int32.
    """

    @intrinsic
    def planes(tc: Any, row: Any, scales: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            row, scales, out = values

            def one(r: Any) -> list[Any]:
                source, to = e.scaled(r, 64 * vectors), e.scaled(r, PLANES * LANES * vectors + 128)
                factors = scales if scaled else None
                _emit_planes(e, e.offset(row, source), factors, e.offset(out, to), vectors)
                return []

            e.loop(e.i64(rows), [], one)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    return planes


def _emit_planes(e: Emit, row: Any, scales: Any, out: Any, vectors: int) -> None:
    b = e.b
    zero = const(V16F32, 0.0)
    absolute = e.intrinsic("llvm.fabs.v16f32", V16F32, [V16F32])
    numbers = []
    for n in range(vectors):
        x = e.load(e.offset(row, 64 * n), V16F32, 64)
        if scales is not None:  # what is behind the last position may have any scale
            factor = e.half_to_float(e.load(e.offset(scales, 32 * n), V16F16, 32))
            x = b.select(b.fcmp_ordered("==", x, zero), zero, b.fmul(x, factor))
        numbers.append(x)
    top = e.reduce_all(reduce(e.max, [b.call(absolute, [x]) for x in numbers]), e.max)
    empty = b.fcmp_ordered("==", top, zero)
    inverse = b.select(empty, zero, b.fdiv(const(V16F32, LEVELS), top))
    codes = [b.fptosi(e.round(b.fmul(x, inverse)), V16I32) for x in numbers]
    for n, code in enumerate(codes):
        high = b.ashr(b.add(code, const(V16I32, 128)), const(V16I32, 8))
        low = b.sub(code, b.shl(high, const(V16I32, 8)))
        for plane, value in enumerate((high, low)):
            e.store(b.trunc(value, V16I8), e.offset(out, LANES * (vectors * plane + n)), 16)
    behind = e.offset(out, PLANES * LANES * vectors)
    e.store(b.fmul(top, const(V16F32, 1.0 / LEVELS)), behind, 4)
    total = e.reduce_all(reduce(b.add, codes), b.add)
    e.store(b.shl(total, const(V16I32, 7)), e.offset(behind, 64), 4)


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

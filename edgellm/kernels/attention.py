"""The KV cache in float16, and causal attention over it.

Per slot and KV head the cache holds two regions: keys in blocks of 16 positions, (positions / 16,
head_dim, 16), so that 16 scores come from one pass without a horizontal sum; values as (positions,
value width), the head dimension padded to 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import QUERIES, Append, Attend, Sequence, State
from edgellm.kernels.simd.emit import F32, I32, LANES, V16F16, V16F32, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at

SEQUENCE_BYTES = 8 * len(Sequence)
VALUE_VECTORS = 4  # value vectors of 16 that are summed in one pass


def _make_append(target: Target) -> tuple[Any, Any]:
    @intrinsic
    def keys16(typingctx: Any, source: Any, destination: Any) -> Any:
        """16 float32 to float16, 32 bytes apart."""

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            half = e.float_to_half(e.load(values[0], V16F32, 4))
            bits = builder.bitcast(half, ir.VectorType(ir.IntType(16), LANES))
            for i in range(LANES):
                lane = builder.extract_element(bits, ir.Constant(I32, i))
                e.store(lane, e.offset(values[1], 32 * i), 2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    @intrinsic
    def values16(typingctx: Any, source: Any, destination: Any) -> Any:
        """16 float32 to float16, side by side."""

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            e.store(e.float_to_half(e.load(values[0], V16F32, 4)), values[1], 2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return keys16, values16


def build_append(target: Target) -> Callable[..., None]:
    """The kernel attention/part=append: k and v of the call's tokens into the cache."""
    keys16, values16 = _make_append(target)

    def append(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        heads, dim = a[Append.KV_HEADS], a[Append.HEAD_DIM]
        padded = (dim + 15) // 16 * 16
        for n in range(s[State.SEQUENCES]):
            q = i64_at(s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES)
            slot = q[Sequence.KV] + a[Append.KV_BEFORE] * q[Sequence.CONTEXT]
            region = 2 * padded * q[Sequence.CONTEXT]
            items = q[Sequence.ROWS] * heads
            for item in range(items * thread // threads, items * (thread + 1) // threads):
                t, head = q[Sequence.FIRST_ROW] + item // heads, item % heads
                p = q[Sequence.POSITION] + item // heads
                k = a[Append.K] + t * a[Append.K_STRIDE] + 4 * head * dim
                v = a[Append.V] + t * a[Append.V_STRIDE] + 4 * head * dim
                keys = slot + head * region + p // 16 * (32 * padded) + p % 16 * 2
                values = slot + (heads + head) * region + p * (2 * padded)
                for d in range(0, dim, 16):
                    keys16(k + 4 * d, keys + 32 * d)
                    values16(v + 4 * d, values + 2 * d)

    return append


def _make_scores(target: Target, queries: int) -> Any:
    """Intrinsic: out[q][block] = scale * q . k for blocks of 16 positions, `queries` queries at once."""

    @intrinsic
    def scores(
        tc: Any, q: Any, q_stride: Any, keys: Any, blocks: Any, dim: Any, padded: Any, scale: Any,
        out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, b = Emit(builder, target), builder
            q, q_stride, keys, blocks, dim, padded, scale, out, out_stride = values
            rows = [e.offset(q, b.mul(q_stride, e.i64(i))) for i in range(queries)]
            outs = [e.offset(out, b.mul(out_stride, e.i64(i))) for i in range(queries)]
            factor = e.splat(b.fptrunc(scale, F32))
            chains = 4 if queries == 1 else 1

            def block(n: Any) -> list[Any]:
                base = e.offset(keys, b.mul(n, e.scaled(padded, 32)))

                def step(d: Any, sums: list[Any], width: int) -> list[Any]:
                    for c in range(width):
                        at = e.offset(d, c)
                        k = e.half_to_float(e.load(e.offset(base, e.scaled(at, 32)), V16F16, 32))
                        for i, row in enumerate(rows):
                            j = i * chains + c
                            sums[j] = e.fma(k, e.splat_f32(e.offset(row, e.scaled(at, 4))), sums[j])
                    return sums

                sums = [const(V16F32, 0.0)] * (queries * chains)
                whole = b.sdiv(dim, e.i64(chains))
                sums = e.loop(whole, sums, lambda i, *s: step(e.scaled(i, chains), list(s), chains))
                done = e.scaled(whole, chains)
                sums = e.loop(b.sub(dim, done), sums, lambda i, *s: step(b.add(done, i), list(s), 1))
                for i in range(queries):
                    total = sums[i * chains]
                    for c in range(1, chains):
                        total = b.fadd(total, sums[i * chains + c])
                    e.store(b.fmul(total, factor), e.offset(outs[i], e.scaled(n, 64)), 64)
                return []

            e.loop(blocks, [], block)
            return context.get_dummy_value()

        ints = [types.int64] * 6
        return types.void(*ints, types.float64, types.int64, types.int64), codegen

    return scores


def _make_softmax(target: Target) -> Any:
    """Intrinsic: in place exp(s - max) over positions first <= p < last, 0 elsewhere; returns the sum."""

    @intrinsic
    def softmax(tc: Any, row: Any, blocks: Any, start: Any, first: Any, last: Any, cap: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, b = Emit(builder, target), builder
            row, blocks, start, first, last, cap = values
            lanes = ir.Constant(V16I32, list(range(LANES)))
            low, high = (e.splat(b.trunc(b.sub(v, start), I32)) for v in (first, last))
            limit = e.splat(b.fptrunc(cap, F32))
            floor = const(V16F32, -3.0e38)

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
            zero = e.i64(0)
            use_cap = b.fcmp_ordered(">", cap, ir.Constant(cap.type, 0.0))
            with_cap, without = b.select(use_cap, blocks, zero), b.select(use_cap, zero, blocks)
            (best,) = e.loop(with_cap, [floor], lambda n, best: masked(n, best, True))
            (best,) = e.loop(without, [best], lambda n, best: masked(n, best, False))
            top = e.splat(e.reduce(best, e.max))

            def exponent(n: Any, total: Any) -> list[Any]:
                at = e.offset(row, e.scaled(n, 64))
                p = e.exp(b.fsub(e.load(at, V16F32, 64), top))
                e.store(p, at, 64)
                return [b.fadd(total, p)]

            (total,) = e.loop(blocks, [const(V16F32, 0.0)], exponent)
            return e.reduce(total, b.fadd)

        return types.float32(*[types.int64] * 5, types.float64), codegen

    return softmax


def _make_values(target: Target, queries: int, vectors: int) -> Any:
    """Intrinsic: out[q] = sum over positions of p[q] * v, for `vectors` vectors of the head dimension."""

    @intrinsic
    def weighted(
        tc: Any, p: Any, p_stride: Any, v: Any, v_stride: Any, count: Any, out: Any, stride: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, b = Emit(builder, target), builder
            p, p_stride, v, v_stride, count, out, stride = values
            rows = [e.offset(p, b.mul(p_stride, e.i64(i))) for i in range(queries)]

            def position(n: Any, *sums: Any) -> list[Any]:
                base = e.offset(v, b.mul(n, v_stride))
                weights = [e.splat_f32(e.offset(row, e.scaled(n, 4))) for row in rows]
                new = list(sums)
                for c in range(vectors):
                    value = e.half_to_float(e.load(e.offset(base, 32 * c), V16F16, 2))
                    for i, weight in enumerate(weights):
                        new[i * vectors + c] = e.fma(weight, value, new[i * vectors + c])
                return new

            sums = e.loop(count, [const(V16F32, 0.0)] * (queries * vectors), position)
            for i in range(queries):
                at = e.offset(out, b.mul(stride, e.i64(i)))
                for c in range(vectors):
                    e.store(sums[i * vectors + c], e.offset(at, 64 * c), 64)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return weighted


def build_attend(target: Target) -> Callable[..., None]:
    """The kernel attention/part=attend. Threads share out the heads, in prefill times
    the groups of QUERIES tokens."""
    scores1, scores_n = _make_scores(target, 1), _make_scores(target, QUERIES)
    values1, values_n = _make_values(target, 1, VALUE_VECTORS), _make_values(target, QUERIES, VALUE_VECTORS)
    tail1, tail_n = _make_values(target, 1, 1), _make_values(target, QUERIES, 1)
    softmax = _make_softmax(target)
    pass_width = 16 * VALUE_VECTORS

    @numba.njit(inline="always")
    def sequence(args, state, record, thread, threads):  # type: ignore[no-untyped-def]
        a, s, af, sq = i64_at(args), i64_at(state), f64_at(args), i64_at(record)
        tokens, heads, dim = sq[Sequence.ROWS], a[Attend.HEADS], a[Attend.HEAD_DIM]
        width = (dim + 15) // 16 * 16
        row_bytes, window = 4 * sq[Sequence.CONTEXT], a[Attend.WINDOW]
        slot = sq[Sequence.KV] + a[Attend.KV_BEFORE] * sq[Sequence.CONTEXT]
        region = 2 * width * sq[Sequence.CONTEXT]
        scratch = s[State.SCRATCH] + thread * s[State.SCRATCH_BYTES]
        sums_at = scratch + QUERIES * row_bytes
        group = 1 if tokens == 1 else QUERIES
        groups = (tokens + group - 1) // group
        for item in range(groups * heads * thread // threads, groups * heads * (thread + 1) // threads):
            head, g = item // groups, item % groups
            # The last group may be short: its extra queries repeat rows that exist in the padded buffers.
            t0 = g * group
            count = min(group, tokens - t0)
            p0 = sq[Sequence.POSITION] + t0
            first = max(0, p0 - window + 1) if window != 0 else 0
            start = first // 16 * 16
            end = p0 + count  # one past the last position that any of the queries sees
            blocks = (end - start + 15) // 16
            kv_head = head // (heads // a[Attend.KV_HEADS])
            keys = slot + kv_head * region + start * (2 * width)
            values = slot + (a[Attend.KV_HEADS] + kv_head) * region + start * (2 * width)
            q = a[Attend.Q] + (sq[Sequence.FIRST_ROW] + t0) * a[Attend.Q_STRIDE] + 4 * head * dim
            if group == 1:
                scores1(q, 0, keys, blocks, dim, width, af[Attend.SCALE], scratch, row_bytes)
            else:
                scores_n(
                    q, a[Attend.Q_STRIDE], keys, blocks, dim, width, af[Attend.SCALE], scratch, row_bytes
                )
            for i in range(count):
                low = max(0, p0 + i - window + 1) if window != 0 else 0
                row = scratch + i * row_bytes
                total = softmax(row, blocks, start, low, p0 + i + 1, af[Attend.SOFTCAP])
                f32_at(sums_at)[i] = np.float32(1) / total
            if count < group:
                for i in range(count, group):
                    row_i = f32_at(scratch + i * row_bytes)
                    for j in range(blocks * 16):
                        row_i[j] = np.float32(0)
            acc = sums_at + 64
            d = 0
            while d < width:
                at, to = values + 2 * d, acc + 4 * d
                if d + pass_width <= width:
                    if group == 1:
                        values1(scratch, 0, at, 2 * width, end - start, to, 0)
                    else:
                        values_n(scratch, row_bytes, at, 2 * width, end - start, to, 4 * width)
                    d += pass_width
                else:
                    if group == 1:
                        tail1(scratch, 0, at, 2 * width, end - start, to, 0)
                    else:
                        tail_n(scratch, row_bytes, at, 2 * width, end - start, to, 4 * width)
                    d += 16
            for i in range(count):
                out = f32_at(
                    a[Attend.OUT] + (sq[Sequence.FIRST_ROW] + t0 + i) * a[Attend.OUT_STRIDE] + 4 * head * dim
                )
                result = f32_at(acc + 4 * i * width)
                factor = f32_at(sums_at)[i]
                for j in range(dim):
                    out[j] = result[j] * factor

    def attend(args: int, state: int, thread: int, threads: int) -> None:
        s = i64_at(state)
        for n in range(s[State.SEQUENCES]):
            sequence(args, state, s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES, thread, threads)

    return attend


def build(target: Target, part: str) -> Callable[..., None]:
    """The kernel attention: part "append" or "attend"."""
    return build_append(target) if part == "append" else build_attend(target)

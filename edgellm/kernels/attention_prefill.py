"""Attention of several new tokens of a sequence: bound by arithmetic.

A row is one query of one head. Up to PREFILL_ROWS rows that share a KV head go through the sequence
together, chunk by chunk: the chunk's keys and values become float32 once, then ROW_BLOCK rows at a time
multiply with them out of the cache, with online softmax in between. Threads take the next block of rows
when they are done with one, the longest first, so that none idles under the causal triangle; a row's
result does not depend on who computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.attention_loops import over_columns
from edgellm.kernels.attention_memory import (
    COUNTER,
    MASKED,
    PREFILL_ROWS,
    ROW_BLOCK,
    SCALING,
    STATS,
    SUMS,
    Scratch,
)
from edgellm.kernels.attention_softmax import emit_softmax
from edgellm.kernels.kv_layout import CHUNK, TILE, ZERO_CODE, KvBlock
from edgellm.kernels.layout import Attend, Sequence, State, align
from edgellm.kernels.simd.emit import LANES, V16F16, V16F32, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, f32_at, f64_at, helper, i64_at

SEQUENCE_BYTES = 8 * len(Sequence)


def _from_codes(e: Emit, at: Any) -> list[Any]:
    """Codes of 16 x 4, in units of 64 bytes, as four vectors of float32."""
    b = e.b
    units = e.load(at, V16I32, 64)
    found = []
    for i in range(4):
        code = b.and_(b.lshr(units, const(V16I32, 8 * i)), const(V16I32, 255))
        found.append(b.sitofp(b.sub(code, const(V16I32, ZERO_CODE)), V16F32))
    return found


def make_unpack(target: Target, kv: str, width: int) -> Any:
    """Intrinsic unpack(block, tiles, keys, values): the first tiles of a block as float32, keys (tiles,
    width, 16), values (16 * tiles, width)."""
    layout = KvBlock(kv, width)

    def halves(e: Emit, block: Any, tiles: Any, keys: Any, values: Any) -> None:
        def convert(start: Any, to: Any) -> None:
            def vector(i: Any) -> list[Any]:
                value = e.half_to_float(e.load(e.offset(start, e.scaled(i, 32)), V16F16, 32))
                e.store(value, e.offset(to, e.scaled(i, 64)), 64)
                return []

            e.loop(e.scaled(tiles, width), [], vector)

        convert(block, keys)
        convert(e.offset(block, layout.values), values)

    def codes(e: Emit, block: Any, tiles: Any, keys: Any, values: Any) -> None:
        b = e.b

        def tile(n: Any) -> list[Any]:
            scale = e.half_to_float(e.load(e.offset(block, e.scaled(n, 2 * TILE)), V16F16, 32))
            source = e.offset(block, layout.keys, e.scaled(n, TILE * width))
            to = e.offset(keys, e.scaled(n, 64 * width))

            def unit(u: Any) -> list[Any]:
                for i, value in enumerate(_from_codes(e, e.offset(source, e.scaled(u, 64)))):
                    e.store(b.fmul(value, scale), e.offset(to, e.scaled(u, 256), 64 * i), 64)
                return []

            return e.loop(e.i64(width // 4), [], unit)

        def four(n: Any) -> list[Any]:
            at = e.offset(block, 2 * CHUNK, e.scaled(b.lshr(n, e.i64(2)), 2 * TILE))
            scale = e.half_to_float(e.load(at, V16F16, 32))
            first = b.and_(e.scaled(n, 4), e.i64(TILE - 1))
            scales = [e.splat(b.extract_element(scale, e.offset(first, i))) for i in range(4)]
            source = e.offset(block, layout.values, e.scaled(n, 4 * width))
            to = e.offset(values, e.scaled(n, 16 * width))

            def unit(u: Any) -> list[Any]:
                for i, value in enumerate(_from_codes(e, e.offset(source, e.scaled(u, 64)))):
                    e.store(b.fmul(value, scales[i]), e.offset(to, e.scaled(u, 64), 4 * width * i), 64)
                return []

            return e.loop(e.i64(width // LANES), [], unit)

        e.loop(tiles, [], tile)
        e.loop(e.scaled(tiles, TILE // 4), [], four)

    @intrinsic
    def unpack(tc: Any, block: Any, tiles: Any, keys: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (codes if kv == "int8" else halves)(Emit(builder, target), *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return unpack


def make_scores(target: Target, width: int) -> Any:
    """Intrinsic scores(q, keys, tiles, out): ROW_BLOCK rows of q . k; q (ROW_BLOCK, width), keys (tiles,
    width, 16), out (ROW_BLOCK, CHUNK) float32. The count of tiles is rounded up to `at_once`."""
    at_once = 2 if target.wide else 1

    @intrinsic
    def scores(tc: Any, q: Any, keys: Any, tiles: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            q, keys, tiles, out = values

            def some(n: Any) -> list[Any]:
                base = e.offset(keys, e.scaled(n, 64 * width * at_once))

                def step(d: Any, *sums: Any) -> list[Any]:
                    k = [
                        e.load(e.offset(base, e.scaled(d, 64), 64 * width * t), V16F32, 64)
                        for t in range(at_once)
                    ]
                    new = list(sums)
                    for r in range(ROW_BLOCK):
                        factor = e.splat_f32(e.offset(q, e.scaled(d, 4), 4 * width * r))
                        for t in range(at_once):
                            i = r * at_once + t
                            new[i] = e.fma(k[t], factor, new[i])
                    return new

                sums = e.loop(e.i64(width), [const(V16F32, 0.0)] * (ROW_BLOCK * at_once), step)
                for i, total in enumerate(sums):
                    r, t = divmod(i, at_once)
                    e.store(total, e.offset(out, e.scaled(n, 64 * at_once), 4 * CHUNK * r + 64 * t), 64)
                return []

            e.loop(builder.udiv(e.offset(tiles, at_once - 1), e.i64(at_once)), [], some)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return scores


def make_rows_softmax(target: Target, group: int) -> Any:
    """Intrinsic softmax(scores, row, first, window, cap, stats, end): of ROW_BLOCK rows from row `row` on.

    `group` rows share a token; the first token of all is at position `first` of this chunk. Rows behind
    the last token see what they like, but nothing from `end` on.
    """

    @intrinsic
    def softmax(
        tc: Any, scores: Any, row: Any, first: Any, window: Any, cap: Any, stats: Any, end: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, b = Emit(builder, target), builder
            scores, row, first, window, cap, stats, end = values
            far = b.select(b.icmp_signed("==", window, e.i64(0)), e.i64(1 << 30), window)

            def seen(i: Any) -> tuple[Any, Any]:
                last = e.offset(first, b.udiv(b.add(row, i), e.i64(group)), 1)
                return b.sub(last, far), last

            emit_softmax(e, scores, ROW_BLOCK, seen, cap, stats, end, few=2)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float64, types.int64, types.int64), codegen

    return softmax


def make_values(target: Target, width: int) -> Any:
    """Intrinsic values(p, v, count, out, stats): out[row] = scaling * out[row] + sum over `count` positions
    of p[row] * v, for ROW_BLOCK rows; p (ROW_BLOCK, CHUNK), v and out of `width` columns, float32."""

    @intrinsic
    def weighted(tc: Any, p: Any, v: Any, count: Any, out: Any, stats: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            p, v, count, out, stats = values

            def some(column: Any, vectors: int) -> None:
                outs, start = [], []
                for r in range(ROW_BLOCK):
                    scaling = e.load(e.offset(stats, STATS * r + SCALING), V16F32, 64)
                    for c in range(vectors):
                        outs.append(e.offset(out, e.scaled(column, 64), 4 * width * r + 64 * c))
                        start.append(builder.fmul(scaling, e.load(outs[-1], V16F32, 64)))

                def position(n: Any, *sums: Any) -> list[Any]:
                    base = e.offset(v, e.scaled(n, 4 * width), e.scaled(column, 64))
                    value = [e.load(e.offset(base, 64 * c), V16F32, 64) for c in range(vectors)]
                    new = list(sums)
                    for r in range(ROW_BLOCK):
                        weight = e.splat_f32(e.offset(p, e.scaled(n, 4), 4 * CHUNK * r))
                        for c in range(vectors):
                            i = r * vectors + c
                            new[i] = e.fma(weight, value[c], new[i])
                    return new

                for total, at in zip(e.loop(count, start, position), outs, strict=True):
                    e.store(total, at, 64)

            over_columns(e, width, 4 if target.wide else 1, some)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return weighted


def build(target: Target, kv: str, group: int, dim: int) -> Callable[..., None]:
    """The part of attention that serves sequences with several new tokens."""
    width = align(dim, LANES)
    unpack, softmax = make_unpack(target, kv, width), make_rows_softmax(target, group)
    scores, values = make_scores(target, width), make_values(target, width)
    memory = Scratch(group, width)
    scores_at, queries_at, results_at = memory.scores, memory.queries, memory.results
    keys_at, values_at = memory.keys, memory.values
    most_tokens = max(1, PREFILL_ROWS // group)
    block_bytes = KvBlock(kv, width).nbytes

    @helper
    def prepare(a, af, first_row, count, head, scratch):  # type: ignore[no-untyped-def]
        """`count` queries, scaled, row by row: the heads of a token side by side, then rows of 0 to a whole
        block. Results and softmax at nothing. Returns the rows."""
        factor = np.float32(af[Attend.SCALE])
        padded = (count + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        for r in range(padded):
            q, o = f32_at(scratch + queries_at + 4 * r * width), f32_at(scratch + results_at + 4 * r * width)
            st = f32_at(scratch + r * STATS)
            used = dim if r < count else 0
            row = first_row + min(r, count - 1) // group
            source = f32_at(a[Attend.Q] + row * a[Attend.Q_STRIDE] + 4 * (head * group + r % group) * dim)
            for j in range(used):
                q[j] = source[j] * factor
            for j in range(used, width):
                q[j] = np.float32(0)
            for j in range(width):
                o[j] = np.float32(0)
            for j in range(LANES):
                st[j], st[LANES + j] = np.float32(MASKED), np.float32(0)
        return padded

    @helper
    def attend_rows(a, af, first, r, tokens, window, start, scratch):  # type: ignore[no-untyped-def]
        """ROW_BLOCK rows from row r on with the chunk at position `start`. first: position of row 0."""
        # The first and the last token of these rows; rows behind the last one repeat it.
        a_token, b_token = min(r // group, tokens - 1), min((r + ROW_BLOCK - 1) // group, tokens - 1)
        count = min(CHUNK, first + b_token + 1 - start)
        if count <= 0 or (window != 0 and first + a_token - window + 1 >= start + CHUNK):
            return
        tiles = (count + TILE - 1) // TILE
        q, row, stats = scratch + queries_at + 4 * r * width, scratch + scores_at, scratch + r * STATS
        scores(q, scratch + keys_at, tiles, row)
        softmax(row, r, first - start, window, af[Attend.SOFTCAP], stats, count)
        values(row, scratch + values_at, count, scratch + results_at + 4 * r * width, stats)

    @helper
    def attend_tokens(a, af, sq, t0, tokens, head, scratch):  # type: ignore[no-untyped-def]
        """Tokens t0 to t0 + tokens - 1 of a sequence, for the heads of one KV head."""
        window = a[Attend.WINDOW]
        first_row, first = sq[Sequence.FIRST_ROW] + t0, sq[Sequence.POSITION] + t0
        count = tokens * group
        padded = prepare(a, af, first_row, count, head, scratch)
        low = max(0, first - window + 1) if window != 0 else 0
        last = first + tokens - 1
        blocks = sq[Sequence.KV] + a[Attend.KV_BEFORE] + head * block_bytes
        for c in range(low // CHUNK, last // CHUNK + 1):
            start = c * CHUNK
            tiles = (min(CHUNK, last + 1 - start) + TILE - 1) // TILE
            unpack(blocks + c * a[Attend.KV_STRIDE], tiles, scratch + keys_at, scratch + values_at)
            for r in range(0, padded, ROW_BLOCK):
                attend_rows(a, af, first, r, tokens, window, start, scratch)
        for r in range(count):
            sums = f32_at(scratch + r * STATS + SUMS)
            total = np.float32(0)
            for j in range(LANES):
                total += sums[j]
            factor = np.float32(1) / total
            o = f32_at(scratch + results_at + 4 * r * width)
            to = a[Attend.OUT] + (first_row + r // group) * a[Attend.OUT_STRIDE]
            result = f32_at(to + 4 * (head * group + r % group) * dim)
            for j in range(dim):
                result[j] = o[j] * factor

    def prefill(args: int, state: int, thread: int, threads: int) -> None:
        a, af, s = i64_at(args), f64_at(args), i64_at(state)
        heads = a[Attend.KV_HEADS]
        scratch = s[State.SCRATCH] + thread * s[State.SCRATCH_BYTES]
        if s[State.TOKENS] == s[State.SEQUENCES]:  # one each
            return
        taken = atomic_add(s[State.COUNTERS], 1)
        before = 0
        for n in range(s[State.SEQUENCES]):
            sq = i64_at(s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES)
            if sq[Sequence.ROWS] == 1:
                continue
            parts = (sq[Sequence.ROWS] + most_tokens - 1) // most_tokens
            while taken < before + parts * heads:
                part, head = parts - 1 - (taken - before) // heads, (taken - before) % heads
                t0 = part * most_tokens
                tokens = min(most_tokens, sq[Sequence.ROWS] - t0)
                attend_tokens(a, af, sq, t0, tokens, head, scratch)
                taken = atomic_add(s[State.COUNTERS], 1)
            before += parts * heads
        # The last thread to leave sets the counters back.
        if atomic_add(s[State.COUNTERS] + COUNTER, 1) + 1 == threads:
            i64_at(s[State.COUNTERS])[0] = 0
            i64_at(s[State.COUNTERS] + COUNTER)[0] = 0

    return prefill

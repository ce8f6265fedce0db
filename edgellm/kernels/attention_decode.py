"""Attention of one new token per sequence: bound by reading the KV cache, so every byte is read once.

All query heads of a KV head take part in each read. Threads share out the sequences, KV heads and spans
of positions. How a sequence is cut into spans depends on its length alone, and their results are added
up in order: what a token gets does not depend on the number of threads, nor on what else is in the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.attention_memory import (
    COUNTER,
    MASKED,
    SPAN_CHUNKS,
    SPANS,
    STATS,
    SUMS,
    Scratch,
    partial_bytes,
)
from edgellm.kernels.attention_products import make_scores, make_values
from edgellm.kernels.attention_softmax import make_combine, make_planes, make_softmax
from edgellm.kernels.kv_layout import CHUNK, TILE, KvBlock
from edgellm.kernels.layout import Attend, Sequence, State, align
from edgellm.kernels.simd.emit import LANES
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, f32_at, f64_at, helper, i64_at

SEQUENCE_BYTES = 8 * len(Sequence)


def build(target: Target, kv: str, group: int, dim: int) -> Callable[..., None]:
    """The part of attention that serves sequences with one new token."""
    int8 = kv == "int8"
    width = align(dim, LANES)
    scores, values = make_scores(target, kv, group, width), make_values(target, kv, group, width)
    softmax, combine = make_softmax(target, group), make_combine(target)
    query_planes = make_planes(target, width // LANES, group, scaled=False)
    value_planes = make_planes(target, CHUNK // LANES, group, scaled=True)
    memory = Scratch(group, width)
    scores_at, planes_at, probabilities_at = memory.scores, memory.query_planes, memory.probabilities
    queries_at, results_at = memory.queries, memory.results
    block = KvBlock(kv, width)
    block_bytes, values_at = block.nbytes, block.values
    item_bytes = partial_bytes(group, width)
    sums_at, partial_at = 4 * group * SPANS, 8 * group * SPANS  # in the results of the parts of a sequence

    @helper
    def prepare(a, af, row, head, scratch):  # type: ignore[no-untyped-def]
        """The group's queries, scaled, to the scratch memory."""
        factor = np.float32(af[Attend.SCALE])
        for g in range(group):
            source = f32_at(a[Attend.Q] + row * a[Attend.Q_STRIDE] + 4 * (head * group + g) * dim)
            q = f32_at(scratch + queries_at + 4 * g * width)
            for j in range(dim):
                q[j] = source[j] * factor
            for j in range(dim, width):
                q[j] = np.float32(0)
        if int8:
            query_planes(scratch + queries_at, 0, scratch + planes_at)

    @helper
    def attend_span(a, af, blocks, first, last, position, low, scratch, out):  # type: ignore[no-untyped-def]
        """Chunks first to last - 1 of one KV head; `out`: float32 (group, width), relative to the largest
        score. blocks: address of the head's block in the first chunk of the sequence."""
        for g in range(group):
            st, o = f32_at(scratch + g * STATS), f32_at(out + 4 * g * width)
            for j in range(LANES):
                st[j], st[LANES + j] = np.float32(MASKED), np.float32(0)
            for j in range(width):
                o[j] = np.float32(0)
        q = scratch + (planes_at if int8 else queries_at)
        for c in range(first, last):
            here = blocks + c * a[Attend.KV_STRIDE]
            ahead = a[Attend.KV_STRIDE] if c < position // CHUNK else 0  # the next block
            begin, end = max(0, low - c * CHUNK), min(CHUNK, position + 1 - c * CHUNK)
            rows = scratch + scores_at
            scores(q, here, (end + TILE - 1) // TILE, rows, ahead)
            softmax(rows, begin, end, af[Attend.SOFTCAP], scratch)
            if int8:
                value_planes(rows, here + 2 * CHUNK, scratch + probabilities_at)
                rows = scratch + probabilities_at
            values(rows, here + values_at, end, out, scratch, ahead)

    @helper
    def total_of(stats):  # type: ignore[no-untyped-def]
        sums = f32_at(stats + SUMS)
        total = np.float32(0)
        for j in range(LANES):
            total += sums[j]
        return total

    @helper
    def merge(partial, spans, out_at):  # type: ignore[no-untyped-def]
        """Add up the spans of one KV head, in order."""
        vectors = (spans + LANES - 1) // LANES
        for g in range(group):
            largest_at = partial + 4 * g * SPANS
            largest, sums = f32_at(largest_at), f32_at(largest_at + sums_at)
            for k in range(spans, vectors * LANES):
                largest[k], sums[k] = np.float32(MASKED), np.float32(0)
            combine(largest_at, largest_at + sums_at, vectors)
            out = f32_at(out_at + 4 * g * dim)
            for k in range(spans):
                o = f32_at(partial + partial_at + 4 * (k * group + g) * width)
                if k == 0:
                    for j in range(dim):
                        out[j] = o[j] * largest[0]
                else:
                    for j in range(dim):
                        out[j] += o[j] * largest[k]

    @helper
    def attend_part(a, af, s, q, item, head, k, spans, begin, end, low, scratch):  # type: ignore[no-untyped-def]
        """Span k of one KV head. Who finishes the last one of them adds them up."""
        position = q[Sequence.POSITION]
        partial = s[State.PARTIALS] + item * item_bytes
        out = scratch + results_at
        if spans > 1:
            out = partial + partial_at + 4 * k * group * width
        blocks = q[Sequence.KV] + a[Attend.KV_BEFORE] + head * block_bytes
        attend_span(a, af, blocks, begin, end, position, low, scratch, out)
        out_at = a[Attend.OUT] + q[Sequence.FIRST_ROW] * a[Attend.OUT_STRIDE] + 4 * head * group * dim
        if spans == 1:
            for g in range(group):
                factor = np.float32(1) / total_of(scratch + g * STATS)
                to, o = f32_at(out_at + 4 * g * dim), f32_at(out + 4 * g * width)
                for j in range(dim):
                    to[j] = o[j] * factor
            return
        for g in range(group):
            f32_at(partial + 4 * g * SPANS)[k] = f32_at(scratch + g * STATS)[0]
            f32_at(partial + sums_at + 4 * g * SPANS)[k] = total_of(scratch + g * STATS)
        counter = s[State.COUNTERS] + (2 + item) * COUNTER
        if atomic_add(counter, 1) + 1 == spans:
            i64_at(counter)[0] = 0
            merge(partial, spans, out_at)

    @helper
    def chunks_of(q, window):  # type: ignore[no-untyped-def]
        """The first position that the new token sees, and how many chunks it looks into."""
        position = q[Sequence.POSITION]
        low = max(0, position - window + 1) if window != 0 else 0
        return low, position // CHUNK + 1 - low // CHUNK

    def decode(args: int, state: int, thread: int, threads: int) -> None:
        a, af, s = i64_at(args), f64_at(args), i64_at(state)
        heads, window = a[Attend.KV_HEADS], a[Attend.WINDOW]
        scratch = s[State.SCRATCH] + thread * s[State.SCRATCH_BYTES]
        total = 0  # work, in chunks of one head
        for n in range(s[State.SEQUENCES]):
            q = i64_at(s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES)
            if q[Sequence.ROWS] == 1:
                total += heads * chunks_of(q, window)[1]
        first, last = total * thread // threads, total * (thread + 1) // threads
        before = 0
        for n in range(s[State.SEQUENCES]):
            q = i64_at(s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES)
            if q[Sequence.ROWS] != 1:
                continue
            low, chunks = chunks_of(q, window)
            if before < last and before + heads * chunks > first:
                start = low // CHUNK
                each = max(SPAN_CHUNKS, (chunks + SPANS - 1) // SPANS)
                spans = (chunks + each - 1) // each
                ready = -1
                for i in range(heads * spans):
                    head, k = i // spans, i % spans
                    begin, end = k * each, min(chunks, (k + 1) * each)
                    middle = before + head * chunks + (begin + end) // 2
                    if first <= middle and middle < last:
                        if ready != head:
                            prepare(a, af, q[Sequence.FIRST_ROW], head, scratch)
                            ready = head
                        item = n * heads + head
                        attend_part(
                            a, af, s, q, item, head, k, spans, start + begin, start + end, low, scratch
                        )
            before += heads * chunks

    return decode

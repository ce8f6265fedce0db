"""The two products of decode's attention: queries with keys, and probabilities with values.

They read a block of the KV cache from memory once, for all query heads of its KV head. With a cache in
float16 they convert as they read; with one in int8 they are integer dot products against queries and
probabilities in two planes.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from edgellm.kernels.attention_loops import MOST_ROWS, over_columns, over_rows
from edgellm.kernels.attention_memory import PLANES, SCALING, STATS
from edgellm.kernels.kv_layout import CHUNK, TILE, KvBlock
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import V16F16, V16F32, V16I32, V64I8, Emit, const
from edgellm.kernels.simd.level import Target

L2 = 2  # where to prefetch to: one core has too few buffers for lines on their way to its nearest cache
PROBABILITIES = PLANES * CHUNK + 128  # bytes of a row of probabilities in planes, see make_planes


def query_bytes(width: int) -> int:
    """Bytes of a query in planes, see make_planes."""
    return PLANES * width + 128


def _planes(e: Emit, base: Any, width: int) -> tuple[list[Any], Any, Any]:
    """Addresses of the planes, of their scale, and of 128 times their sum."""
    scale = PLANES * width
    return (
        [e.offset(base, width * n) for n in range(PLANES)],
        e.offset(base, scale),
        e.offset(base, scale + 64),
    )


def _whole(e: Emit, parts: list[Any], excess: Any) -> Any:
    """Sums of the high and the low plane to float32, less what the codes' offset of 128 added."""
    total = e.b.add(e.b.shl(parts[0], const(V16I32, 8)), parts[1])
    return e.b.sitofp(e.b.sub(total, e.load(excess, V16I32, 4)), V16F32)


def _tiles_at_once(target: Target, kv: str, rows: int) -> int:
    """Tiles of keys that are multiplied at once: enough sums to hide latency, within the registers."""
    tiles = 4 if target.wide else {1: 4, 2: 2}.get(rows, 1)
    if kv == "int8":  # two planes have twice the sums
        return max(1, tiles // 2) if rows > 2 or not target.wide else tiles
    return tiles


def make_scores(target: Target, kv: str, group: int, width: int) -> Any:
    """Intrinsic scores(q, block, tiles, out, ahead): out[head][position] = q . k for tiles of a block.

    q: for every head `width` float32, or query_bytes of planes; out: (group, CHUNK) float32. Prefetches
    what lies `ahead` bytes behind the keys.
    """
    layout = KvBlock(kv, width)
    tile_bytes = TILE * width * layout.item
    q_bytes = query_bytes(width) if kv == "int8" else 4 * width

    def halves(e: Emit, q: list[Any], tiles: list[Any], ahead: Any) -> list[Any]:
        """Products of rows x tiles, tile by tile."""

        def pair(i: Any, *sums: Any) -> list[Any]:
            new = list(sums)
            for t in range(len(tiles)):
                e.prefetch(e.offset(tiles[0], ahead, e.scaled(i, 64 * len(tiles)), 64 * t), L2)
            for d in range(2):
                factors = [e.splat_f32(e.offset(row, e.scaled(i, 8), 4 * d)) for row in q]
                for t, at in enumerate(tiles):
                    k = e.half_to_float(e.load(e.offset(at, e.scaled(i, 64), 32 * d), V16F16, 32))
                    for r, factor in enumerate(factors):
                        n = t * len(q) + r
                        new[n] = e.fma(k, factor, new[n])
            return new

        return e.loop(e.i64(width // 2), [const(V16F32, 0.0)] * (len(tiles) * len(q)), pair)

    def codes(e: Emit, q: list[Any], tiles: list[Any], scales: list[Any], ahead: Any) -> list[Any]:
        queries = [_planes(e, row, width) for row in q]

        def unit(i: Any, *sums: Any) -> list[Any]:
            new, n = list(sums), 0
            fours = [e.splat_4xi8(e.offset(at, e.scaled(i, 4))) for planes, _, _ in queries for at in planes]
            for t, at in enumerate(tiles):
                e.prefetch(e.offset(tiles[0], ahead, e.scaled(i, 64 * len(tiles)), 64 * t), L2)
                k = e.load(e.offset(at, e.scaled(i, 64)), V64I8, 64)
                for four in fours:
                    new[n] = dot4(e, new[n], k, four, 255)
                    n += 1
            return new

        zero = [const(V16I32, 0)] * (len(tiles) * len(q) * PLANES)
        sums = iter(e.loop(e.i64(width // 4), zero, unit))
        results = []
        for at in scales:
            scale = e.half_to_float(e.load(at, V16F16, 32))
            for _, factor, excess in queries:
                total = _whole(e, [next(sums) for _ in range(PLANES)], excess)
                results.append(e.b.fmul(total, e.b.fmul(scale, e.load(factor, V16F32, 4))))
        return results

    @intrinsic
    def scores(tc: Any, q: Any, block: Any, tiles: Any, out: Any, ahead: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            q, block, tiles, out, ahead = values

            def rows_of(first: Any, rows: int) -> None:
                at_once = _tiles_at_once(target, kv, rows)
                q_rows = [e.offset(q, e.scaled(first, q_bytes), q_bytes * r) for r in range(rows)]

                def some(tile: Any, at_once: int) -> list[Any]:
                    start = e.offset(block, layout.keys, e.scaled(tile, tile_bytes))
                    bases = [e.offset(start, tile_bytes * t) for t in range(at_once)]
                    if kv == "int8":
                        scales = [
                            e.offset(block, e.scaled(tile, 2 * TILE), 2 * TILE * t) for t in range(at_once)
                        ]
                        found = codes(e, q_rows, bases, scales, ahead)
                    else:
                        found = halves(e, q_rows, bases, ahead)
                    for i, total in enumerate(found):
                        t, r = divmod(i, rows)
                        row = e.offset(out, e.scaled(first, 4 * CHUNK), 4 * CHUNK * r)
                        e.store(total, e.offset(row, e.scaled(tile, 64), 64 * t), 64)
                    return []

                whole = builder.udiv(tiles, e.i64(at_once))
                e.loop(whole, [], lambda n: some(e.scaled(n, at_once), at_once))
                if at_once > 1:
                    done = e.scaled(whole, at_once)
                    e.loop(builder.sub(tiles, done), [], lambda n: some(builder.add(done, n), 1))

            over_rows(e, group, MOST_ROWS, rows_of)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return scores


def make_values(target: Target, kv: str, group: int, width: int) -> Any:
    """Intrinsic values(p, v, count, out, stats, ahead): out[head] = scaling * out[head] + sum over `count`
    positions of p[head] * v; the scaling is the head's in `stats`.

    p: for every head CHUNK float32, or PROBABILITIES bytes of planes; v: a block's values; out: (group,
    width) float32. Prefetches what lies `ahead` bytes behind the values.
    """
    p_bytes = PROBABILITIES if kv == "int8" else 4 * CHUNK
    item = KvBlock(kv, width).item

    def vectors_at_once(rows: int) -> int:
        if target.wide:
            return 2 if kv == "int8" and rows == MOST_ROWS else 4
        return max(1, (2 if kv == "int8" else 4) // rows)

    def halves(e: Emit, p: list[Any], v: Any, count: Any, ahead: Any, start: list[Any]) -> list[Any]:
        vectors = len(start) // len(p)

        def position(n: Any, *sums: Any) -> list[Any]:
            base = e.offset(v, e.scaled(n, 2 * width))
            for line in range(0, 32 * vectors, 64):
                e.prefetch(e.offset(base, ahead, line), L2)
            weights = [e.splat_f32(e.offset(row, e.scaled(n, 4))) for row in p]
            new = list(sums)
            for c in range(vectors):
                value = e.half_to_float(e.load(e.offset(base, 32 * c), V16F16, 32))
                for r, weight in enumerate(weights):
                    new[r * vectors + c] = e.fma(weight, value, new[r * vectors + c])
            return new

        return e.loop(count, start, position)

    def codes(e: Emit, p: list[Any], v: Any, count: Any, ahead: Any, start: list[Any]) -> list[Any]:
        vectors = len(start) // len(p)
        found = [_planes(e, row, CHUNK) for row in p]

        def four(n: Any, *sums: Any) -> list[Any]:
            base = e.offset(v, e.scaled(n, 4 * width))
            new, i = list(sums), 0
            weights = [e.splat_4xi8(e.offset(at, e.scaled(n, 4))) for planes, _, _ in found for at in planes]
            for c in range(vectors):
                e.prefetch(e.offset(base, ahead, 64 * c), L2)
                value = e.load(e.offset(base, 64 * c), V64I8, 64)
                for weight in weights:
                    new[i] = dot4(e, new[i], value, weight, 255)
                    i += 1
            return new

        fours = e.b.lshr(e.offset(count, 3), e.i64(2))
        sums = iter(e.loop(fours, [const(V16I32, 0)] * (len(start) * PLANES), four))
        results = list(start)
        for c in range(vectors):
            for r, (_, scale, excess) in enumerate(found):
                total = _whole(e, [next(sums) for _ in range(PLANES)], excess)
                i = r * vectors + c
                results[i] = e.fma(total, e.load(scale, V16F32, 4), results[i])
        return results

    @intrinsic
    def weighted(tc: Any, p: Any, v: Any, count: Any, out: Any, stats: Any, ahead: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            p, v, count, out, stats, ahead = values

            def rows_of(first: Any, rows: int) -> None:
                p_rows = [e.offset(p, e.scaled(first, p_bytes), p_bytes * r) for r in range(rows)]

                def some(column: Any, vectors: int) -> None:
                    outs, start = [], []
                    for r in range(rows):
                        state = e.offset(stats, e.scaled(first, STATS), STATS * r + SCALING)
                        scaling = e.load(state, V16F32, 64)
                        row = e.offset(out, e.scaled(first, 4 * width), e.scaled(column, 64), 4 * width * r)
                        for c in range(vectors):
                            outs.append(e.offset(row, 64 * c))
                            start.append(builder.fmul(scaling, e.load(outs[-1], V16F32, 64)))
                    # 16 float16 of a position, or 16 codes of four.
                    at = e.offset(v, e.scaled(column, 32 if item == 2 else 64))
                    how = codes if kv == "int8" else halves
                    found = how(e, p_rows, at, count, ahead, start)
                    for value, to in zip(found, outs, strict=True):
                        e.store(value, to, 64)

                over_columns(e, width, vectors_at_once(rows), some)

            over_rows(e, group, MOST_ROWS, rows_of)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return weighted

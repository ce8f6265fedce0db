"""y = W x for quantised W: block-wise int8 activations against tile16x4 weights.

One token is a matvec, several a matmul that unpacks each weight once for 4 tokens (2 without 512-bit
registers, so that the sums stay in registers). Per block of inputs the dot product is exact in integers;
scales and sums are float32, in a fixed order. With two planes of activations the integers have 16 bits,
and what remains is the rounding of the scales.

With a gate the kernel computes f(old) * (W x + bias): the second half of a gated FFN, whose first half
another kernel has left in the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import ROW_SCALES, ROWS, State, TileLayout
from edgellm.kernels.layout import LinearQ as Arg
from edgellm.kernels.linear_tiles import MOST_INPUTS, make_panel
from edgellm.kernels.linear_tiles import TOKENS as PART
from edgellm.kernels.sharing import chunk_tiles, fixed_tiles, next_tiles
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import I32, I64, V16F16, V16F32, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at
from edgellm.kernels.unpack import unpack

TILE_BYTES = 4 * ROWS  # float32 results of one tile
# Ahead of a stream that several tokens share, if its codes are narrow: the CPU, busy multiplying, looks ahead
# less by itself (on a Zen 4 12 against 10 GB/s with 4 bits; but 9 against 13 with 8).
PREFETCH_BYTES = 4096
CACHED_BYTES = 512 << 10  # of activations that should stay in a core's cache while weights pass by


NEXT_TILE = -1


@dataclass(frozen=True)
class Shape:
    """What one tile intrinsic computes: `tiles` weight tiles times `tokens` rows of activations."""

    form: TileLayout
    planes: int
    tiles: int
    tokens: int
    gate: str | None = None
    prefetch: int = 0  # bytes ahead; NEXT_TILE: the same place in the tiles behind these
    whole: bool = False  # rows of either side have a single scale: the sums of a whole row are integers


def make_tile(target: Target, shape: Shape) -> Any:
    """Intrinsic tile(args, weight tile, second weight tile, activation row, out, old, old stride, bias)."""

    @intrinsic
    def tile(
        tc: Any, args: Any, w: Any, w2: Any, act: Any, out: Any, old: Any, old_stride: Any, bias: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _Tile(Emit(builder, target), shape, values[0]).emit(*values[1:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return tile


class _Tile:
    """Emits one tile intrinsic: out = W x + old + bias, or the gated product."""

    def __init__(self, e: Emit, shape: Shape, args: Any):
        self.e, self.shape = e, shape

        def arg(slot: int) -> Any:
            return e.load(e.offset(args, 8 * slot), I64, 8)

        self.act_stride, self.out_stride = arg(Arg.INPUT_STRIDE), arg(Arg.OUT_STRIDE)
        self.blocks = arg(Arg.BLOCKS)
        self.fsum, self.start, self.scale = arg(Arg.ACT_FSUM), arg(Arg.ACT_START), arg(Arg.ACT_SCALE)
        self.low_plane = arg(Arg.ACT_LOW)
        self.ahead: Any = shape.prefetch
        if shape.prefetch == NEXT_TILE:
            self.ahead = e.b.mul(arg(Arg.TILE_STRIDE), e.i64(shape.tiles))

    def emit(self, w: Any, w2: Any, act: Any, out: Any, old: Any, old_stride: Any, bias: Any) -> None:
        e, b, shape = self.e, self.e.b, self.shape
        form = shape.form
        weights = [w, w2][: shape.tiles]
        rows = [e.offset(act, b.mul(self.act_stride, e.i64(t))) for t in range(shape.tokens)]

        def lines(g: Any) -> list[Any]:
            return [e.offset(one, ROW_SCALES, e.scaled(g, form.group_stride)) for one in weights]

        def group(g: Any, *before: Any) -> list[Any]:
            sums, at = list(before), lines(g)
            self._prefetch(at)
            for j in range(form.group):
                sums = self._block(at, j, e.offset(e.scaled(g, form.group), j), rows, sums)
            return sums

        if shape.whole:
            self._store(weights, self._whole(lines, rows), out, old, old_stride, bias)
            return
        count = self.blocks if form.group == 1 else b.lshr(self.blocks, e.i64(1))
        sums = e.loop(count, [const(V16F32, 0.0)] * (shape.tiles * shape.tokens), group)
        if form.group == 2:  # an odd last block
            last = b.sub(self.blocks, e.i64(1))
            at = lines(b.lshr(last, e.i64(1)))
            odd = b.and_(self.blocks, e.i64(1))
            sums = e.loop(odd, sums, lambda _, *so_far: self._block(at, 0, last, rows, list(so_far)))
        self._store(weights, sums, out, old, old_stride, bias)

    def _prefetch(self, lines: list[Any]) -> None:
        if self.shape.prefetch:
            for line in lines:
                for n in range(0, self.shape.form.group_stride, 64):
                    self.e.prefetch(self.e.offset(line, n, self.ahead))

    def _whole(self, lines: Callable[[Any], list[Any]], rows: list[Any]) -> list[Any]:
        """sums[tile * tokens + token] of whole rows, of integers until the end."""
        e, b, shape = self.e, self.e.b, self.shape
        form, count = shape.form, shape.tiles * shape.tokens
        chains = max(1, 4 // count)  # few sums would wait for the dot product's latency

        def block(k: Any, *before: Any) -> list[Any]:
            sums, starts, at = list(before[: count * chains]), before[count * chains :], lines(k)
            self._prefetch(at)
            codes = [unpack(e, line, form, 0) for line in at]
            for v in range(form.block // 4):
                for t, row in enumerate(rows):
                    x = e.splat_4xi8(e.offset(row, e.scaled(k, form.block), 4 * v))
                    for tile in range(shape.tiles):
                        i = (tile * shape.tokens + t) * chains + v % chains
                        sums[i] = dot4(e, sums[i], codes[tile][v], x, 2**form.bits - 1)
            shares = [e.load(e.offset(row, self.start, e.scaled(k, 4)), I32, 4) for row in rows]
            return [*sums, *(b.add(start, share) for start, share in zip(starts, shares, strict=True))]

        zeros = [const(V16I32, 0)] * (count * chains)
        found = e.loop(self.blocks, [*zeros, *[ir.Constant(I32, 0)] * shape.tokens], block)
        results = []
        for i in range(count):
            row, total = rows[i % shape.tokens], e.splat(found[count * chains + i % shape.tokens])
            for part in found[i * chains : (i + 1) * chains]:
                total = b.add(total, part)
            results.append(b.fmul(b.sitofp(total, V16F32), e.splat_f32(e.offset(row, self.scale))))
        return results

    def _block(self, lines: list[Any], j: int, k: Any, rows: list[Any], sums: list[Any]) -> list[Any]:
        """Adds block k, which is block j of the groups at `lines`, to sums[tile * tokens + token]."""
        e, b, shape = self.e, self.e.b, self.shape
        form, planes = shape.form, shape.planes
        inputs, quad = e.scaled(k, form.block), e.scaled(k, 4)
        chains = 2 if len(sums) * planes < 4 else 1  # few sums would wait for the dot product's latency
        zero = const(V16I32, 0)
        totals = [[[zero] * chains for _ in range(planes)] for _ in sums]
        if not form.asym:  # the sum begins at minus the zero point's share
            for t, row in enumerate(rows):
                start = e.splat(e.load(e.offset(row, self.start, quad), I32, 4))
                for tile in range(shape.tiles):
                    totals[tile * shape.tokens + t][-1][0] = start
        codes = [unpack(e, e.offset(line, form.line), form, j) for line in lines]
        for v in range(form.block // 4):
            for t, row in enumerate(rows):
                for plane in range(planes):
                    x = e.splat_4xi8(e.offset(row, inputs, 4 * v, *([self.low_plane] * plane)))
                    for tile in range(shape.tiles):
                        held = totals[tile * shape.tokens + t][plane]
                        held[v % chains] = dot4(e, held[v % chains], codes[tile][v], x, 2**form.bits - 1)
        scales = [
            e.half_to_float(e.load(e.offset(line, 32 * j), V16F16, 32)) for line in lines if form.scaled
        ]
        lows = [e.half_to_float(e.load(e.offset(line, 32), V16F16, 32)) for line in lines if form.asym]
        scale_at = quad if form.block == 32 else e.scaled(b.lshr(k, e.i64(1)), 4)
        new = []
        for tile in range(shape.tiles):
            for t, row in enumerate(rows):
                i = tile * shape.tokens + t
                parts = [held[0] if chains == 1 else b.add(*held) for held in totals[i]]
                total = parts[0] if planes == 1 else b.add(b.shl(parts[0], const(V16I32, 8)), parts[1])
                dot, scale = b.sitofp(total, V16F32), e.splat_f32(e.offset(row, self.scale, scale_at))
                value = (
                    e.fma(b.fmul(dot, scale), scales[tile], sums[i])
                    if form.scaled
                    else e.fma(dot, scale, sums[i])
                )
                if form.asym:
                    value = e.fma(lows[tile], e.splat_f32(e.offset(row, self.fsum, quad)), value)
                new.append(value)
        return new

    def _store(
        self, weights: list[Any], sums: list[Any], out: Any, old: Any, old_stride: Any, bias: Any
    ) -> None:
        e, b, shape = self.e, self.e.b, self.shape
        factors = [e.load(w, V16F32, 64) for w in weights]
        for t in range(shape.tokens):
            to = e.offset(out, b.mul(self.out_stride, e.i64(t)))
            before = e.offset(old, b.mul(old_stride, e.i64(t)))
            for tile in range(shape.tiles):
                at = tile * TILE_BYTES
                total, there = sums[tile * shape.tokens + t], e.load(e.offset(before, at), V16F32, 4)
                base = e.load(e.offset(bias, at), V16F32, 4)
                if shape.gate:
                    value = b.fmul(ACTIVATIONS[shape.gate](e, there), e.fma(total, factors[tile], base))
                else:
                    value = e.fma(total, factors[tile], b.fadd(there, base))
                e.store(value, e.offset(to, at), 4)


@intrinsic
def _no_panel(
    tc: Any, args: Any, w: Any, act: Any, groups: Any, out: Any, old: Any, old_stride: Any, bias: Any
) -> Any:
    """What stands in for a panel intrinsic where nothing calls it."""
    return types.void(*[types.int64] * 8), lambda context, *_: context.get_dummy_value()


def build(
    target: Target,
    bits: int,
    asym: int,
    block: int,
    planes: int,
    gate: str | None = None,
    scaled: int = 1,
    rounded: int = 0,
) -> Callable[..., None]:
    """The kernel linear_q for one weight form. Threads share out the tiles. rounded: the rows of activations
    have a single scale, and those of the weights too.

    One stream of weights at a time while they come from memory; for many tokens the target's tile
    registers, or as many sums as its other registers hold: of pairs of tiles, which share what is loaded of
    the activations, or where codes are costly to unpack for the few products made of each, of more tokens.
    """
    form = TileLayout(0, bits, bool(asym), block, bool(scaled))
    group = 4 if target.wide else 2
    width = 2 if target.wide and planes == 2 and len(form.planes) == 1 else 1
    step = group if width == 2 or not target.wide else 2 * group
    whole = bool(rounded)
    one = make_tile(target, Shape(form, planes, 1, 1, gate, target.prefetch_bytes, whole))
    ahead = PREFETCH_BYTES if bits <= 4 else target.prefetch_bytes
    few = make_tile(target, Shape(form, planes, 1, group, gate, ahead, whole))
    next_tile = NEXT_TILE if planes == 1 else 0  # gains 2 to 12 % with one plane, and nothing with two
    most = make_tile(target, Shape(form, planes, width, step, gate, next_tile, whole)) if target.wide else few
    wide, has_tiles = target.wide, target.tiles != ""
    panel = make_panel(target, form, planes, gate) if has_tiles else _no_panel

    @numba.njit(inline="always")
    def by_vectors(args, tile, tiles, begin, end, x, out, old, old_stride, bias):  # type: ignore[no-untyped-def]
        """`tiles` tiles for tokens begin to end: `width` of them at once, or one."""
        a = i64_at(args)
        w = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE]
        t = begin
        if tiles == width:
            while t + (step - group) < end:
                row, to = x + t * a[Arg.INPUT_STRIDE], out + t * a[Arg.OUT_STRIDE]
                most(args, w, w + a[Arg.TILE_STRIDE], row, to, old + t * old_stride, old_stride, bias)
                t += step
        while t < end:
            row, to = x + t * a[Arg.INPUT_STRIDE], out + t * a[Arg.OUT_STRIDE]
            few(args, w, w, row, to, old + t * old_stride, old_stride, bias)
            t += group

    def linear(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, stride, tiles = s[State.TOKENS], a[Arg.INPUT_STRIDE], a[Arg.TILES]
        x = a[Arg.INPUT]
        if tokens == 1:
            x += a[Arg.INPUT_PRIVATE] * thread * stride
        part = max(PART, CACHED_BYTES // stride // PART * PART)
        many = wide and tokens > 2 * group and not (has_tiles and a[Arg.BLOCKS] * block <= MOST_INPUTS)
        together = width if many else 1
        fixed = fixed_tiles(tiles, tiles * a[Arg.TILE_STRIDE] * tokens, threads)
        if a[Arg.LOOSE] != 0 and fixed < tiles:
            fixed = tiles // 2
        first, last = fixed * thread // threads, fixed * (thread + 1) // threads
        while first < tiles:
            for begin in range(0, tokens, part):
                end = min(tokens, begin + part)
                for tile in range(first, last, together):
                    w = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE]
                    out = a[Arg.OUT] + tile * TILE_BYTES
                    bias = a[Arg.BIAS] + tile * TILE_BYTES if a[Arg.BIAS] != 0 else s[State.ZERO]
                    old, old_stride = s[State.ZERO], 0
                    if a[Arg.ACCUMULATE] != 0:
                        old, old_stride = out, a[Arg.OUT_STRIDE]
                    if tokens == 1:
                        one(args, w, w, x, out, old, old_stride, bias)
                        continue
                    rest = begin
                    if has_tiles and not many:
                        groups = (end - begin) // PART
                        if groups > 0:
                            to, before = out + begin * a[Arg.OUT_STRIDE], old + begin * old_stride
                            panel(args, w, x + begin * stride, groups, to, before, old_stride, bias)
                            rest += groups * PART
                    count = min(together, last - tile) if many else 0
                    by_vectors(args, tile, count, rest, end, x, out, old, old_stride, bias)
            first = next_tiles(args + 8 * Arg.NEXT, tiles, fixed, threads)
            last = min(tiles, first + chunk_tiles(tiles, fixed, threads))

    return linear

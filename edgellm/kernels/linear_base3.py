"""y = W x for ternary W in base 3: int8 activations against Base3Layout.

One token is a matvec that reads 1.6 bits a weight. Of several tokens, each five tiles are unpacked to two
bits once, on the stack, and multiplied as linear_q multiplies tiles. Sums are exact in integers for every
block of activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.base3 import add, digits, totals
from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import ACT_BLOCK, MOST_BASE3_INPUTS, ROW_SCALES, TRITS, State, TileLayout
from edgellm.kernels.layout import LinearQ as Arg
from edgellm.kernels.linear_q import CACHED_BYTES, TILE_BYTES, Shape, make_tile
from edgellm.kernels.linear_tiles import TOKENS as PART
from edgellm.kernels.sharing import chunk_tiles, fixed_tiles, next_tiles
from edgellm.kernels.simd.emit import I32, I64, V16F32, V16I32, V64I8, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at

_TWO_BITS = TileLayout(0, 2, False, ACT_BLOCK, scaled=False)


def make_one(target: Target, planes: int, gate: str | None, whole: bool) -> Any:
    """Intrinsic one(args, five tiles, how many of them exist, activation row, out, old, bias)."""

    @intrinsic
    def one(tc: Any, args: Any, w: Any, count: Any, act: Any, out: Any, old: Any, bias: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            args_at, w_at, count_at, act_at, *rest = values
            fives = _Fives(Emit(builder, target), planes, args_at, w_at, act_at)
            fives.store(fives.whole() if whole else fives.by_block(), gate, w_at, count_at, *rest)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return one


class _Fives:
    """Emits the product of five tiles and one row of activations."""

    def __init__(self, e: Emit, planes: int, args: Any, w: Any, act: Any):
        self.e, self.planes, self.act = e, planes, act

        def arg(slot: int) -> Any:
            return e.load(e.offset(args, 8 * slot), I64, 8)

        self.blocks, self.low = arg(Arg.BLOCKS), arg(Arg.ACT_LOW)
        self.starts, self.scales = arg(Arg.ACT_START), arg(Arg.ACT_SCALE)
        self.units = e.offset(w, TRITS * ROW_SCALES)

    def by_block(self) -> list[Any]:
        """float32 sums of the five tiles, of blocks that are exact in integers."""
        e, b = self.e, self.e.b

        def block(k: Any, *before: Any) -> list[Any]:
            quad = e.scaled(k, 4)
            sums = self._added(k, [[const(V16I32, 0)] * TRITS for _ in range(self.planes)])
            start = e.splat(e.load(e.offset(self.act, self.starts, quad), I32, 4))  # digits are trits + 1
            scale = e.splat_f32(e.offset(self.act, self.scales, quad))
            found = [totals(e, s) for s in sums]
            new = []
            for d in range(TRITS):
                total = found[0][d]
                if self.planes == 2:
                    total = b.add(b.shl(total, const(V16I32, 8)), found[1][d])
                new.append(e.fma(b.sitofp(b.add(total, start), V16F32), scale, before[d]))
            return new

        return e.loop(self.blocks, [const(V16F32, 0.0)] * TRITS, block)

    def whole(self) -> list[Any]:
        """The same of one plane whose blocks have one scale: integers to the end of the row. They hold sums
        of bytes times int8 of MOST_BASE3_INPUTS, and more."""
        e, b = self.e, self.e.b

        def block(k: Any, *before: Any) -> list[Any]:
            share = e.load(e.offset(self.act, self.starts, e.scaled(k, 4)), I32, 4)
            return [*self._added(k, [list(before[:-1])])[0], b.add(before[-1], share)]

        *sums, start = e.loop(self.blocks, [*[const(V16I32, 0)] * TRITS, ir.Constant(I32, 0)], block)
        start, scale = e.splat(start), e.splat_f32(e.offset(self.act, self.scales))
        return [b.fmul(b.sitofp(b.add(total, start), V16F32), scale) for total in totals(e, sums)]

    def _added(self, k: Any, sums: list[list[Any]]) -> list[list[Any]]:
        """sums of each plane, and the products of block k."""
        e = self.e
        inputs = e.scaled(k, ACT_BLOCK)
        for v in range(ACT_BLOCK // 4):
            unit = e.load(e.offset(self.units, e.scaled(k, 16 * ACT_BLOCK), 64 * v), V64I8, 64)
            for plane in range(self.planes):
                x = e.splat_4xi8(e.offset(self.act, inputs, 4 * v, *([self.low] * plane)))
                sums[plane] = add(e, sums[plane], unit, x)
        return sums

    def store(
        self, sums: list[Any], gate: str | None, w: Any, count: Any, out: Any, old: Any, bias: Any
    ) -> None:
        """The results of the tiles that exist."""
        e, b = self.e, self.e.b
        for d, total in enumerate(sums):

            def store(_: Any, d: int = d, total: Any = total) -> list[Any]:
                at = d * TILE_BYTES
                factor = e.load(e.offset(w, d * ROW_SCALES), V16F32, 64)
                there = e.load(e.offset(old, at), V16F32, 4)
                base = e.load(e.offset(bias, at), V16F32, 4)
                if gate:
                    value = b.fmul(ACTIVATIONS[gate](e, there), e.fma(total, factor, base))
                else:
                    value = e.fma(total, factor, b.fadd(there, base))
                e.store(value, e.offset(out, at), 4)
                return []

            e.loop(b.zext(b.icmp_signed("<", e.i64(d), count), I64), [], store)  # once, or not at all


def make_unpack(target: Target) -> Any:
    """Intrinsic unpack(five tiles, blocks, to): the same as tiles of two bits, one behind the other."""

    @intrinsic
    def unpack(tc: Any, w: Any, blocks: Any, to: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e, (w, blocks, to) = Emit(builder, target), values
            stride = e.offset(e.scaled(blocks, ACT_BLOCK * 4), ROW_SCALES)
            tiles = [e.offset(to, builder.mul(stride, e.i64(d))) for d in range(TRITS)]
            for d, tile in enumerate(tiles):
                e.store(e.load(e.offset(w, d * ROW_SCALES), V16F32, 64), tile, 64)

            def sixteen(i: Any) -> list[Any]:  # inputs: four units here, one in each tile
                four = []
                for v in range(4):
                    at = e.offset(w, TRITS * ROW_SCALES, e.scaled(i, 256), 64 * v)
                    four.append(digits(e, e.load(at, V64I8, 64)))
                for d, tile in enumerate(tiles):
                    code = four[0][d]
                    for v in range(1, 4):
                        code = builder.or_(code, builder.shl(four[v][d], const(V64I8, 2 * v)))
                    e.store(code, e.offset(tile, ROW_SCALES, e.scaled(i, 64)), 64)
                return []

            e.loop(e.scaled(blocks, ACT_BLOCK // 16), [], sixteen)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return unpack


def make_room(target: Target) -> Any:
    """Intrinsic room(): the address of memory for five unpacked tiles, on the stack."""

    @intrinsic
    def room(tc: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return Emit(builder, target).room(TRITS * (ROW_SCALES + 4 * MOST_BASE3_INPUTS))

        return types.int64(), codegen

    return room


def build(target: Target, planes: int, gate: str | None = None, rounded: int = 0) -> Callable[..., None]:
    """The kernel linear_base3. Threads share out groups of five tiles; TILES counts tiles, TILE_STRIDE is
    that of a group. rounded: the rows of activations have a single scale."""
    group = 4 if target.wide else 2
    step = 2 * group if target.wide else group
    whole = bool(rounded)
    one, unpack, room = make_one(target, planes, gate, whole), make_unpack(target), make_room(target)
    few = make_tile(target, Shape(_TWO_BITS, planes, 1, group, gate, whole=whole))
    most = make_tile(target, Shape(_TWO_BITS, planes, 1, step, gate, whole=whole)) if step > group else few

    @numba.njit(inline="always")
    def by_tile(args, w, begin, end, out, old_at, old_stride, bias):  # type: ignore[no-untyped-def]
        """One unpacked tile for tokens begin to end."""
        a = i64_at(args)
        t = begin
        while t < end:
            row, to = a[Arg.INPUT] + t * a[Arg.INPUT_STRIDE], out + t * a[Arg.OUT_STRIDE]
            old = old_at + t * old_stride
            if t + group < end:
                most(args, w, w, row, to, old, old_stride, bias)
                t += step
            else:
                few(args, w, w, row, to, old, old_stride, bias)
                t += group

    @numba.njit(inline="always")
    def five_tiles(args, state, w, tile, count, x, memory, begin, end):  # type: ignore[no-untyped-def]
        """The tiles from `tile` on, `count` of the five at w: for one token, or tokens begin to end."""
        a, s = i64_at(args), i64_at(state)
        alone = s[State.TOKENS] == 1
        if not alone:
            unpack(w, a[Arg.BLOCKS], memory)
        for i in range(1 if alone else count):
            out = a[Arg.OUT] + (tile + i) * TILE_BYTES
            bias = a[Arg.BIAS] + (tile + i) * TILE_BYTES if a[Arg.BIAS] != 0 else s[State.ZERO]
            old, old_stride = s[State.ZERO], 0
            if a[Arg.ACCUMULATE] != 0:
                old, old_stride = out, a[Arg.OUT_STRIDE]
            if alone:
                one(args, w, count, x, out, old, bias)
            else:
                unpacked = memory + i * (ROW_SCALES + a[Arg.BLOCKS] * (ACT_BLOCK * 4))
                by_tile(args, unpacked, begin, end, out, old, old_stride, bias)

    def linear(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        tokens, stride, tiles = i64_at(state)[State.TOKENS], a[Arg.INPUT_STRIDE], a[Arg.TILES]
        x = a[Arg.INPUT]
        if tokens == 1:
            x += a[Arg.INPUT_PRIVATE] * thread * stride
        part = max(PART, CACHED_BYTES // stride // PART * PART)
        fives = (tiles + TRITS - 1) // TRITS
        memory = room()
        fixed = fixed_tiles(fives, fives * a[Arg.TILE_STRIDE] * tokens, threads)
        if a[Arg.LOOSE] != 0 and fixed < fives:
            fixed = fives // 2
        first, last = fixed * thread // threads, fixed * (thread + 1) // threads
        while first < fives:
            for begin in range(0, tokens, part):
                end = min(tokens, begin + part)
                for five in range(first, last):
                    w, tile = a[Arg.WEIGHT] + five * a[Arg.TILE_STRIDE], five * TRITS
                    five_tiles(args, state, w, tile, min(TRITS, tiles - tile), x, memory, begin, end)
            first = next_tiles(args + 8 * Arg.NEXT, fives, fixed, threads)
            last = min(fives, first + chunk_tiles(fives, fixed, threads))

    return linear

"""The matmul of linear_q with tile registers: 16 rows of weights times 16 tokens at a time.

A panel of unpacked codes (all inputs of one weight tile) is made once and serves all tokens. Per block of
inputs the tile unit computes the exact integer sums of both planes; vectors scale and add them.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import ROW_SCALES, ROWS, TileLayout
from edgellm.kernels.layout import LinearQ as Arg
from edgellm.kernels.simd.emit import I32, I64, V16F16, V16F32, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.tiles import TILE_BYTES, Tiles
from edgellm.kernels.unpack import unpack

TOKENS = 16
MOST_INPUTS = 32768  # of a panel, which lies on the stack: 512 KiB


def make_panel(target: Target, form: TileLayout, planes: int, gate: str | None) -> Any:
    """Intrinsic panel(args, weight tile, first row of activations, groups of TOKENS rows, out, old,
    old stride, bias): as the tile intrinsics of linear_q, for 16 rows of W and all the groups."""

    @intrinsic
    def panel(
        tc: Any, args: Any, w: Any, act: Any, groups: Any, out: Any, old: Any, old_stride: Any, bias: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _Panel(Emit(builder, target), form, planes, gate, values[0]).emit(*values[1:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return panel


class _Panel:
    """Emits one panel intrinsic."""

    def __init__(self, e: Emit, form: TileLayout, planes: int, gate: str | None, args: Any):
        self.e, self.form, self.planes, self.gate = e, form, planes, gate

        def arg(slot: int) -> Any:
            return e.load(e.offset(args, 8 * slot), I64, 8)

        self.act_stride, self.out_stride = arg(Arg.INPUT_STRIDE), arg(Arg.OUT_STRIDE)
        self.blocks = arg(Arg.BLOCKS)
        self.fsum, self.start, self.scale = arg(Arg.ACT_FSUM), arg(Arg.ACT_START), arg(Arg.ACT_SCALE)
        self.low_plane = arg(Arg.ACT_LOW)
        block = form.block
        # Registers 0 and 1 hold the sums of the planes, 2 and 3 activations, 4 weights.
        sums, left, right = (ROWS, 64), (TOKENS, block), (block // 4, 64)
        self.tiles = Tiles(e, [sums, sums, left, left, right])
        self.codes, self.sums = e.room(ROWS * MOST_INPUTS), e.room(2 * TILE_BYTES)

    def emit(self, w: Any, act: Any, groups: Any, out: Any, old: Any, old_stride: Any, bias: Any) -> None:
        e, b = self.e, self.e.b
        self.tiles.configure()
        self._each_block(w, [], lambda line, j, k, _: self._unpack(line, j, k))

        def sixteen(g: Any) -> list[Any]:
            rows, to, before = (
                e.offset(start, b.mul(e.scaled(g, TOKENS), stride))
                for start, stride in ((act, self.act_stride), (out, self.out_stride), (old, old_stride))
            )
            zeros = [const(V16F32, 0.0)] * TOKENS
            totals = self._each_block(w, zeros, lambda line, j, k, sums: self._block(line, j, k, rows, sums))
            factor, base = e.load(w, V16F32, 64), e.load(bias, V16F32, 4)
            for t, total in enumerate(totals):
                there = e.load(e.offset(before, b.mul(old_stride, e.i64(t))), V16F32, 4)
                if self.gate:
                    value = b.fmul(ACTIVATIONS[self.gate](e, there), e.fma(total, factor, base))
                else:
                    value = e.fma(total, factor, b.fadd(there, base))
                e.store(value, e.offset(to, b.mul(self.out_stride, e.i64(t))), 4)
            return []

        e.loop(groups, [], sixteen)
        self.tiles.release()

    def _each_block(self, w: Any, state: list[Any], body: Any) -> list[Any]:
        """state = body(line of the group, block of the group, number of the block, state) for all blocks."""
        e, b, form = self.e, self.e.b, self.form

        def line_of(g: Any) -> Any:
            return e.offset(w, ROW_SCALES, e.scaled(g, form.group_stride))

        def group(g: Any, *before: Any) -> list[Any]:
            now = list(before)
            for j in range(form.group):
                now = body(line_of(g), j, e.offset(e.scaled(g, form.group), j), now)
            return now

        if form.group == 1:
            return e.loop(self.blocks, state, group)
        state = e.loop(b.lshr(self.blocks, e.i64(1)), state, group)
        last = b.sub(self.blocks, e.i64(1))
        line = line_of(b.lshr(last, e.i64(1)))
        odd = b.and_(self.blocks, e.i64(1))
        return e.loop(odd, state, lambda _, *so_far: body(line, 0, last, list(so_far)))

    def _unpack(self, line: Any, j: int, k: Any) -> list[Any]:
        e = self.e
        to = e.offset(self.codes, e.scaled(k, ROWS * self.form.block))
        for v, codes in enumerate(unpack(e, e.offset(line, self.form.line), self.form, j)):
            e.store(codes, e.offset(to, 64 * v), 64)
        return []

    def _block(self, line: Any, j: int, k: Any, rows: Any, totals: list[Any]) -> list[Any]:
        e, b, form, tiles = self.e, self.e.b, self.form, self.tiles
        inputs, quad = e.scaled(k, form.block), e.scaled(k, 4)
        tiles.load(4, e.offset(self.codes, e.scaled(k, ROWS * form.block)), e.i64(64))
        for plane in range(self.planes):
            tiles.load(2 + plane, e.offset(rows, inputs, *([self.low_plane] * plane)), self.act_stride)
            tiles.zero(plane)
            tiles.dot(plane, 2 + plane, 4)
            tiles.store(plane, e.offset(self.sums, TILE_BYTES * plane))
        scale = e.half_to_float(e.load(e.offset(line, 32 * j), V16F16, 32)) if form.scaled else None
        low = e.half_to_float(e.load(e.offset(line, 32), V16F16, 32)) if form.asym else None
        scale_at = quad if form.block == 32 else e.scaled(b.lshr(k, e.i64(1)), 4)
        new = []
        for t, before in enumerate(totals):
            parts = [
                e.load(e.offset(self.sums, TILE_BYTES * p + 64 * t), V16I32, 64) for p in range(self.planes)
            ]
            total = parts[0] if self.planes == 1 else b.add(b.shl(parts[0], const(V16I32, 8)), parts[1])
            row = e.offset(rows, b.mul(self.act_stride, e.i64(t)))
            if not form.asym:
                total = b.add(total, e.splat(e.load(e.offset(row, self.start, quad), I32, 4)))
            dot, factor = b.sitofp(total, V16F32), e.splat_f32(e.offset(row, self.scale, scale_at))
            value = e.fma(b.fmul(dot, factor), scale, before) if scale else e.fma(dot, factor, before)
            if form.asym:
                value = e.fma(low, e.splat_f32(e.offset(row, self.fsum, quad)), value)
            new.append(value)
        return new

"""y = W x for quantised W: block-wise int8 activations against tile16x4 weights.

One token is a matvec, several a matmul that unpacks each weight once for GROUP tokens. Per block of
inputs the dot product is exact in integers; scales and sums are float32, in a fixed order. With two
planes of activations the integers have 16 bits, and what remains is the rounding of the scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import GROUP, PREFETCH_BYTES, ROW_SCALES, SCALE_LINE, TileLayout
from edgellm.kernels.layout import LinearQ as Arg
from edgellm.kernels.linear import over_tiles
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import I32, V16F16, V16F32, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.unpack import unpack


def make_tile(target: Target, bits: int, asym: bool, block: int, planes: int, tokens: int) -> Any:
    """Intrinsic tile(args, weight tile, activation row, out, old, old stride, bias) for `tokens` rows."""

    @intrinsic
    def tile(tc: Any, args: Any, w: Any, act: Any, out: Any, old: Any, old_stride: Any, bias: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            _emit_tile(e, *values, bits=bits, asym=asym, block=block, planes=planes, tokens=tokens)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


def _emit_tile(
    e: Emit, args: Any, w: Any, act: Any, out: Any, old: Any, old_stride: Any, bias: Any,
    *, bits: int, asym: bool, block: int, planes: int, tokens: int,
) -> None:  # fmt: skip
    b = e.b

    def arg(slot: int) -> Any:
        return e.load(e.offset(args, 8 * slot), e.i64(0).type, 8)

    act_stride, out_stride, blocks = arg(Arg.INPUT_STRIDE), arg(Arg.OUT_STRIDE), arg(Arg.BLOCKS)
    form = TileLayout(0, bits, asym, block)
    shift = e.splat(b.trunc(arg(Arg.ZERO_SHIFT), I32))
    rows = [e.offset(act, b.mul(act_stride, e.i64(t))) for t in range(tokens)]
    fsum, isum, ascale = arg(Arg.ACT_FSUM), arg(Arg.ACT_ISUM), arg(Arg.ACT_SCALE)
    low_plane = arg(Arg.ACT_LOW)
    chains = 2 if tokens == 1 else 1  # a lone token needs two sums to hide the dot product's latency

    def one_block(line: Any, j: int, k: Any, sums: Any) -> list[Any]:
        """Adds block k, which is block j of the group at `line`."""
        inputs, scale_at = e.scaled(k, block), e.offset(line, 32 * j)
        acc = [[[const(V16I32, 0)] * chains for _ in range(planes)] for _ in rows]
        for v, codes in enumerate(unpack(e, e.offset(line, SCALE_LINE), form, j)):
            for t, row in enumerate(rows):
                for plane, sums_of in enumerate(acc[t]):
                    values = e.splat_4xi8(e.offset(row, inputs, 4 * v, *([low_plane] * plane)))
                    sums_of[v % chains] = dot4(e, sums_of[v % chains], codes, values, 2**bits - 1)
        scale = e.half_to_float(e.load(scale_at, V16F16, 32))
        low = e.half_to_float(e.load(e.offset(line, 32), V16F16, 32)) if asym else None
        new = []
        quad = e.scaled(k, 4) if block == 32 else e.scaled(b.lshr(k, e.i64(1)), 4)
        for t, row in enumerate(rows):
            parts = [sums_of[0] if chains == 1 else b.add(*sums_of) for sums_of in acc[t]]
            total = parts[0] if planes == 1 else b.add(b.shl(parts[0], const(V16I32, 8)), parts[1])
            if not asym:
                zero = e.splat(e.load(e.offset(row, isum, e.scaled(k, 4)), I32, 4))
                total = b.sub(total, b.shl(zero, shift))
            dot = b.fmul(b.sitofp(total, V16F32), e.splat_f32(e.offset(row, ascale, quad)))
            value = e.fma(dot, scale, sums[t])
            if asym:
                value = e.fma(low, e.splat_f32(e.offset(row, fsum, e.scaled(k, 4))), value)
            new.append(value)
        return new

    def line_of(g: Any) -> Any:
        return e.offset(w, ROW_SCALES, e.scaled(g, form.group_stride))

    def body(g: Any, *before: Any) -> list[Any]:
        sums = list(before)
        line = line_of(g)
        if tokens == 1:
            for at in range(0, form.group_stride, 64):
                e.prefetch(e.offset(line, at + PREFETCH_BYTES))
        for j in range(form.group):
            sums = one_block(line, j, e.offset(e.scaled(g, form.group), j), sums)
        return sums

    sums = e.loop(blocks if asym else b.lshr(blocks, e.i64(1)), [const(V16F32, 0.0)] * tokens, body)
    if not asym:  # an odd last block
        last = b.sub(blocks, e.i64(1))
        line = line_of(b.lshr(last, e.i64(1)))
        sums = e.loop(b.and_(blocks, e.i64(1)), sums, lambda _, *so_far: one_block(line, 0, last, so_far))
    row_scale, offset = e.load(w, V16F32, 64), e.load(bias, V16F32, 4)
    for t, total in enumerate(sums):
        before = e.load(e.offset(old, b.mul(old_stride, e.i64(t))), V16F32, 4)
        value = e.fma(total, row_scale, b.fadd(before, offset))
        e.store(value, e.offset(out, b.mul(out_stride, e.i64(t))), 4)


def build(target: Target, bits: int, asym: int, block: int, planes: int) -> Callable[..., None]:
    """The kernel linear_q for one weight form. Threads share out the tiles."""
    forms = [make_tile(target, bits, bool(asym), block, planes, tokens) for tokens in (1, GROUP)]
    return over_tiles(Arg, *forms)

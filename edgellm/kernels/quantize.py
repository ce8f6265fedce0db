"""Activations to integers in blocks of 32, as one or two planes of int8, with their sums.

With rounding=int8 a row has one scale, as BitNet models are trained: 127ths of its largest magnitude.

The sums serve weights with a minimum (FSUM) or a zero point 2^SHIFT: a dot product that starts at START,
minus the sum times the zero point, needs no correction at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import Norm, State
from edgellm.kernels.layout import Quantize as Arg
from edgellm.kernels.norm import make_group
from edgellm.kernels.simd.emit import I32, I64, V16F32, V16I8, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f64_at, i64_at

SMALLEST = 1e-5  # magnitude that rows of a single scale are taken to have at least, as in transformers


def make_row(target: Target, planes: int, per_row: bool) -> Any:
    """Intrinsic row(args, x row, act row): quantise one row into the form of layout.ActLayout."""

    @intrinsic
    def row(typingctx: Any, args: Any, x: Any, act: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            args_at, x_at, act_at = values
            _emit_row(Emit(builder, target), args_at, x_at, act_at, planes, per_row)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return row


def _emit_row(e: Emit, args: Any, x: Any, act: Any, planes: int, per_row: bool) -> None:
    b = e.b

    def section(slot: int) -> Any:
        return e.offset(act, e.load(e.offset(args, 8 * slot), I64, 8))

    largest = 32512.0 if planes == 2 else 127.0
    low_at = section(Arg.LOW)
    scale_at, fsum32, start32 = section(Arg.SCALE), section(Arg.FSUM32), section(Arg.START32)
    fsum16, start16 = section(Arg.FSUM16), section(Arg.START16)
    shift = b.trunc(e.load(e.offset(args, 8 * Arg.SHIFT), I64, 8), I32)
    absolute = e.intrinsic("llvm.fabs.v16f32", V16F32, [V16F32])

    blocks = e.load(e.offset(args, 8 * Arg.BLOCKS), I64, 8)

    def halves_of(i: Any) -> tuple[list[Any], Any]:
        """The 32 values of a block, and their magnitudes' maxima by lane."""
        halves = [e.load(e.offset(x, e.scaled(i, 128), 64 * h), V16F32, 4) for h in range(2)]
        return halves, e.max(*(b.call(absolute, [h]) for h in halves))

    row_top = None
    if per_row:
        most = e.loop(blocks, [const(V16F32, SMALLEST)], lambda i, most: [e.max(most, halves_of(i)[1])])
        row_top = e.reduce(most[0], e.max)

    def block(i: Any) -> list[Any]:
        halves, biggest = halves_of(i)
        top = e.reduce(biggest, e.max) if row_top is None else row_top
        zero = b.fcmp_ordered("==", top, ir.Constant(top.type, 0.0))
        inverse = b.select(zero, ir.Constant(top.type, 0.0), b.fdiv(ir.Constant(top.type, largest), top))
        scale = b.fmul(top, ir.Constant(top.type, 1.0 / largest))
        sums = []
        for h, values in enumerate(halves):
            codes = b.fptosi(e.round(b.fmul(values, e.splat(inverse))), V16I32)
            high = codes
            if planes == 2:
                high = b.ashr(b.add(codes, const(V16I32, 128)), const(V16I32, 8))
                low = b.sub(codes, b.shl(high, const(V16I32, 8)))
                e.store(b.trunc(low, V16I8), e.offset(low_at, e.scaled(i, 32), 16 * h), 16)
            e.store(b.trunc(high, V16I8), e.offset(act, e.scaled(i, 32), 16 * h), 16)
            sums.append(e.reduce(codes, b.add))
            e.store(b.neg(b.shl(sums[h], shift)), e.offset(start16, e.scaled(i, 8), 4 * h), 4)
            e.store(b.fmul(scale, b.sitofp(sums[h], scale.type)), e.offset(fsum16, e.scaled(i, 8), 4 * h), 4)
        total = b.add(*sums)
        at = e.scaled(i, 4)
        e.store(scale, e.offset(scale_at, at), 4)
        e.store(b.neg(b.shl(total, shift)), e.offset(start32, at), 4)
        e.store(b.fmul(scale, b.sitofp(total, scale.type)), e.offset(fsum32, at), 4)
        return []

    e.loop(blocks, [], block)


def build(target: Target, planes: int, norm: int = 0, rounding: str | None = None) -> Callable[..., None]:
    """The kernel quantize. A lone token is quantised by every thread into its own row, which costs less
    than waiting for each other; several tokens are shared out. With `norm` the input is first made by a
    norm of whole rows, whose arguments are at NORM."""
    row = make_row(target, planes, rounding is not None)
    group = make_group()

    @numba.njit(inline="always")
    def normalize(a, tokens, thread, t):  # type: ignore[no-untyped-def]
        n = i64_at(a[Arg.NORM])
        x = n[Norm.X] + (n[Norm.X_PRIVATE] * thread if tokens == 1 else t) * n[Norm.X_STRIDE]
        out = n[Norm.OUT] + (thread if tokens == 1 else t) * n[Norm.OUT_STRIDE]
        eps = f64_at(a[Arg.NORM])[Norm.EPS]
        group(x, out, n[Norm.WIDTH], eps, n[Norm.WEIGHT], n[Norm.BIAS], n[Norm.LAYER])

    def quantize(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens = s[State.TOKENS]
        if tokens == 1:
            if norm:
                normalize(a, tokens, thread, 0)
            x = a[Arg.X] + a[Arg.X_PRIVATE] * thread * a[Arg.X_STRIDE]
            row(args, x, a[Arg.ACT] + thread * a[Arg.ACT_STRIDE])
        else:
            for t in range(tokens * thread // threads, tokens * (thread + 1) // threads):
                if norm:
                    normalize(a, tokens, thread, t)
                row(args, a[Arg.X] + t * a[Arg.X_STRIDE], a[Arg.ACT] + t * a[Arg.ACT_STRIDE])

    return quantize

"""Columns of down of some neurons, times what the neurons fire: the other half of a sparse FFN.

    out[t] = sum over the neurons i of the list of hidden[t, i] W_i, + bias, + out[t] before

in the order of the list, whatever thread or place a neuron is in, so that a result does not depend on what is
cached. Sums are float32. Trits and rounded inputs are whole numbers, of which a float32 holds any sum that
occurs exactly; scales come last, in the order of linear_q, so both agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import NeuronColumns as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.neuron_codes import GROUP, SCALED, UNIT, UNIT_BYTES, scales, values
from edgellm.kernels.simd.emit import F32, V16F32, Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import atomic_add, f32_at, f64_at, i8_at, i64_at

# Of the result, that a thread takes at a time; their sums stay in its nearest cache while columns pass by.
ROWS_ON_DEMAND = 1024
TOGETHER = 4  # columns that are added at a time, so that sums are loaded and stored once for all of them
AHEAD = 2  # times as many that prefetching is ahead; into the second cache, which takes more at a time


def make_axpy(target: Target, codec: str, count: int) -> Any:
    """Intrinsic axpy(list entries, next ones, offset of scales, of codes, hidden factors, units, sums): sums
    += factors times the same piece of `count` columns. Entries are addresses of pairs (neuron, address)."""

    @intrinsic
    def axpy(
        tc: Any, entries: Any, following: Any, heads: Any, codes: Any, factors: Any, units: Any, sums: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            _emit_axpy(Emit(builder, target), codec, count, *given)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return axpy


def _emit_axpy(
    e: Emit, codec: str, count: int, entries: Any, following: Any, heads: Any, codes: Any, factors: Any,
    units: Any, sums: Any,
) -> None:  # fmt: skip
    from edgellm.kernels.simd.emit import I64

    b, nbytes, scaled = e.b, UNIT_BYTES[codec], codec in SCALED

    def address_in(pairs: Any, n: int) -> Any:
        return e.load(e.offset(pairs, 16 * n + 8), I64, 8)

    columns = [address_in(entries, n) for n in range(count)]
    ahead = [address_in(following, n) for n in range(count)]
    times = [e.splat_f32(e.offset(factors, 4 * n)) for n in range(count)]

    def block_scales(unit: Any) -> list[Any]:
        """Of each column: factor times scale of the 16 blocks from a unit on."""
        at = e.scaled(unit, 4)
        return [b.fmul(t, scales(e, e.offset(c, heads, at))) for t, c in zip(times, columns, strict=True)]

    def add(unit: Any, found: list[Any], block: int) -> None:
        """Add a unit of all columns; its blocks are `block` and the next one of those in `found`."""
        to = e.offset(sums, e.scaled(unit, 4 * UNIT))
        totals = [e.load(e.offset(to, 64 * i), V16F32, 64) for i in range(4)]
        for n, column in enumerate(columns):
            at = e.offset(column, codes, e.scaled(unit, nbytes))
            pair = [times[n]] * 2
            if scaled:
                pair = [e.shuffle(found[n], [block + i] * 16) for i in range(2)]
            for i, value in enumerate(values(e, at, codec)):
                totals[i] = e.fma(value, pair[i // 2], totals[i])
        for i, total in enumerate(totals):
            e.store(total, e.offset(to, 64 * i), 64)

    def group(i: Any) -> list[Any]:
        first = e.scaled(i, GROUP)
        found = block_scales(first) if scaled else []
        for column in ahead:
            for line in range(0, GROUP * nbytes, 64):
                e.prefetch(e.offset(column, codes, e.scaled(first, nbytes), line), 2)
        for j in range(GROUP):
            add(e.offset(first, j), found, 2 * j)
        return []

    groups = b.sdiv(units, e.i64(GROUP))
    e.loop(groups, [], group)
    done = e.scaled(groups, GROUP)

    def single(i: Any) -> list[Any]:
        unit = b.add(done, i)
        add(unit, block_scales(unit) if scaled else [], 0)
        return []

    e.loop(b.sub(units, done), [], single)


def make_room(target: Target, nbytes: int) -> Any:
    """Intrinsic room(): address of so many bytes on the stack."""

    @intrinsic
    def room(tc: Any) -> Any:
        return types.int64(), lambda context, builder, *_: Emit(builder, target).room(nbytes)

    return room


def make_finish(target: Target, codec: str, rounded: bool) -> Any:
    """Intrinsic finish(sums, out, bias, old, hidden scale, row scales, factor, vectors, keep, biased): out =
    scaled sums + old + bias; keep and biased are 0 where old or bias is a single vector of zeros."""
    own_scales = codec not in SCALED

    @intrinsic
    def finish(
        tc: Any, sums: Any, out: Any, bias: Any, old: Any, hidden_scale: Any, row_scales: Any, factor: Any,
        vectors: Any, keep: Any, biased: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            e = Emit(builder, target)
            b = e.b
            sums, out, bias, old, hidden_scale, row_scales, factor, vectors, keep, biased = given
            one = e.splat(b.fptrunc(factor, F32))

            def body(i: Any) -> list[Any]:
                at = e.scaled(i, 64)
                total = e.load(e.offset(sums, at), V16F32, 64)
                if rounded:
                    total = b.fmul(total, e.splat_f32(hidden_scale))
                factors = e.load(e.offset(row_scales, at), V16F32, 4) if own_scales else one
                there = e.load(e.offset(old, b.mul(at, keep)), V16F32, 4)
                base = b.fadd(there, e.load(e.offset(bias, b.mul(at, biased)), V16F32, 4))
                e.store(e.fma(total, factors, base), e.offset(out, at), 4)
                return []

            e.loop(vectors, [], body)
            return context.get_dummy_value()

        arguments = (*[types.int64] * 6, types.float64, *[types.int64] * 3)
        return types.void(*arguments), codegen

    return finish


def build(target: Target, codec: str, rounded: int = 0) -> Callable[..., None]:
    """The kernel neuron_columns. Threads take rows of the result as they get on."""
    several, one = make_axpy(target, codec, TOGETHER), make_axpy(target, codec, 1)
    sums_room, factors_room = make_room(target, 4 * ROWS_ON_DEMAND), make_room(target, 4 * TOGETHER)
    finish = make_finish(target, codec, bool(rounded))
    nbytes, scaled, together = UNIT_BYTES[codec], codec in SCALED, TOGETHER

    def neuron_columns(args: int, state: int, thread: int, threads: int) -> None:
        a, s, listed = i64_at(args), i64_at(state), i64_at(i64_at(args)[Arg.LIST])
        pairs = a[Arg.LIST] + 8
        tokens, count, units = s[State.TOKENS], listed[0], a[Arg.UNITS]
        factor = f64_at(args)[Arg.FACTOR]
        sums, zero = sums_room(), s[State.ZERO]
        factors = factors_room()
        h = f32_at(factors)
        chunk = ROWS_ON_DEMAND // UNIT
        first = atomic_add(a[Arg.NEXT], chunk)
        while first < units:
            some = min(chunk, units - first)
            vectors, row = some * UNIT // 16, first * UNIT
            heads = a[Arg.VECTOR] + (4 * first if scaled else 0)
            codes = a[Arg.VECTOR] + (4 * units if scaled else 0) + first * nbytes
            for t in range(tokens):
                copy = a[Arg.HIDDEN_PRIVATE] * thread if tokens == 1 else t
                hidden = a[Arg.HIDDEN] + copy * a[Arg.HIDDEN_STRIDE]
                for i in range(16 * vectors):
                    f32_at(sums)[i] = np.float32(0)
                for i in range(0, count, together):
                    most = min(together, count - i)
                    fired = False
                    for n in range(most):
                        neuron = listed[1 + 2 * (i + n)]
                        h[n] = np.float32(i8_at(hidden)[neuron]) if rounded else f32_at(hidden)[neuron]
                        fired = fired or h[n] != 0
                    if not fired:
                        continue
                    at = pairs + 16 * i
                    if most == together:
                        ahead = pairs + 16 * min(i + AHEAD * together, count - together)
                        several(at, ahead, heads, codes, factors, some, sums)
                    else:
                        for n in range(most):
                            if n > 0:
                                h[0] = h[n]
                            one(at + 16 * n, at + 16 * n, heads, codes, factors, some, sums)
                out = a[Arg.OUT] + t * a[Arg.OUT_STRIDE] + 4 * row
                bias, biased = (a[Arg.BIAS] + 4 * row, 1) if a[Arg.BIAS] != 0 else (zero, 0)
                old, kept = (out, 1) if a[Arg.ACCUMULATE] != 0 else (zero, 0)
                scale_at = hidden + a[Arg.HIDDEN_SCALE]
                row_scales = a[Arg.ROW_SCALES] + 4 * row
                finish(sums, out, bias, old, scale_at, row_scales, factor, vectors, kept, biased)
            first = atomic_add(a[Arg.NEXT], chunk)

    return neuron_columns

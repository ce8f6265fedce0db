"""Writes the keys and values of new tokens into the KV cache. The layout is kv_layout's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.kv_layout import CHUNK, TILE, ZERO_CODE, KvBlock
from edgellm.kernels.layout import Append, Sequence, State, align
from edgellm.kernels.simd.emit import (
    I32,
    LANES,
    V16F32,
    V16I8,
    V16I16,
    V16I32,
    Emit,
    const,
)
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at

SEQUENCE_BYTES = 8 * len(Sequence)
CODES = 127.0  # steps on either side of 0


def _vectors(e: Emit, dim: int) -> Any:
    return e.i64(align(dim, LANES) // LANES)


def _load_padded(e: Emit, source: Any, i: Any, dim: int) -> Any:
    """Numbers 16 i to 16 i + 15 of a row of `dim` float32, 0 beyond."""
    if dim % LANES == 0:
        return e.load(e.offset(source, e.scaled(i, 64)), V16F32, 4)
    left = e.b.trunc(e.b.sub(e.i64(dim), e.scaled(i, LANES)), I32)
    inside = e.b.icmp_signed("<", const(V16I32, list(range(LANES))), e.splat(left))
    return e.b.select(inside, e.load(e.offset(source, e.scaled(i, 64)), V16F32, 4), const(V16F32, 0.0))


def _scatter(e: Emit, vector: Any, to: Any, stride: int) -> None:
    """Elements of a vector of integers, `stride` bytes apart."""
    size = vector.type.element.width // 8
    for i in range(vector.type.count):
        e.store(e.b.extract_element(vector, ir.Constant(I32, i)), e.offset(to, stride * i), size)


def _emit_halves(e: Emit, source: Any, to: Any, *, dim: int, is_key: bool) -> None:
    def body(i: Any) -> list[Any]:
        half = e.float_to_half(_load_padded(e, source, i, dim))
        if is_key:
            _scatter(e, e.b.bitcast(half, V16I16), e.offset(to, e.scaled(i, 2 * TILE * LANES)), 2 * TILE)
        else:
            e.store(half, e.offset(to, e.scaled(i, 2 * LANES)), 2)
        return []

    e.loop(_vectors(e, dim), [], body)


def _emit_codes(e: Emit, source: Any, to: Any, scale_at: Any, *, dim: int, is_key: bool) -> None:
    """The scale is the float16 next to the largest magnitude / 127; codes are taken relative to it."""
    b = e.b
    absolute = e.intrinsic("llvm.fabs.v16f32", V16F32, [V16F32])

    def largest(i: Any, top: Any) -> list[Any]:
        return [e.max(top, b.call(absolute, [_load_padded(e, source, i, dim)]))]

    (top,) = e.loop(_vectors(e, dim), [const(V16F32, 0.0)], largest)
    half = e.float_to_half(b.fmul(e.splat(e.reduce(top, e.max)), const(V16F32, 1.0 / CODES)))
    e.store(b.extract_element(b.bitcast(half, V16I16), ir.Constant(I32, 0)), scale_at, 2)
    scale = e.half_to_float(half)
    empty = b.fcmp_ordered("==", scale, const(V16F32, 0.0))
    inverse = b.select(empty, const(V16F32, 0.0), b.fdiv(const(V16F32, 1.0), scale))

    def body(i: Any) -> list[Any]:
        x = b.fmul(_load_padded(e, source, i, dim), inverse)
        x = b.select(b.fcmp_ordered("<", x, const(V16F32, CODES)), x, const(V16F32, CODES))
        x = e.max(x, const(V16F32, -CODES))
        codes = b.trunc(b.add(b.fptosi(e.round(x), V16I32), const(V16I32, ZERO_CODE)), V16I8)
        if is_key:
            _scatter(e, b.bitcast(codes, ir.VectorType(I32, 4)), e.offset(to, e.scaled(i, 4 * 64)), 64)
        else:
            _scatter(e, codes, e.offset(to, e.scaled(i, 64)), 4)
        return []

    e.loop(_vectors(e, dim), [], body)


def make_row(target: Target, kv: str, dim: int, is_key: bool) -> Any:
    """Intrinsic row(source, to, scale at): one position's numbers of one head."""

    @intrinsic
    def row(tc: Any, source: Any, to: Any, scale_at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            if kv == "int8":
                _emit_codes(e, *values, dim=dim, is_key=is_key)
            else:
                _emit_halves(e, *values[:2], dim=dim, is_key=is_key)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    return row


def build(target: Target, kv: str, dim: int) -> Callable[..., None]:
    """The kernel for one kind of KV cache. Threads share out the rows and heads of each sequence."""
    key_row, value_row = (make_row(target, kv, dim, is_key) for is_key in (True, False))
    int8 = kv == "int8"
    width = align(dim, LANES)
    block = KvBlock(kv, width)
    block_bytes, keys_at, values_at = block.nbytes, block.keys, block.values

    def append(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        heads = a[Append.KV_HEADS]
        for n in range(s[State.SEQUENCES]):
            q = i64_at(s[State.SEQUENCE_TABLE] + n * SEQUENCE_BYTES)
            items = q[Sequence.ROWS] * heads
            for i in range(items * thread // threads, items * (thread + 1) // threads):
                t, head = i // heads, i % heads
                position, row = q[Sequence.POSITION] + t, q[Sequence.FIRST_ROW] + t
                p = position % CHUNK
                to = q[Sequence.KV] + position // CHUNK * a[Append.KV_STRIDE] + a[Append.KV_BEFORE]
                to += head * block_bytes
                if int8:
                    key_at = p // TILE * (TILE * width) + p % TILE * 4
                    value_at = p // 4 * (4 * width) + p % 4
                else:
                    key_at = p // TILE * (2 * TILE * width) + p % TILE * 2
                    value_at = p * (2 * width)
                k = a[Append.K] + row * a[Append.K_STRIDE] + 4 * head * dim
                v = a[Append.V] + row * a[Append.V_STRIDE] + 4 * head * dim
                key_row(k, to + keys_at + key_at, to + 2 * p)
                value_row(v, to + values_at + value_at, to + 2 * CHUNK + 2 * p)

    return append

"""Rows of a tensor, as the file has them, into tiles. Threads share out the tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.codes import CODE_FORMS, FLOAT_BYTES
from edgellm.kernels.layout import ROW_SCALES, ROWS
from edgellm.kernels.layout import Pack as Arg
from edgellm.kernels.simd.emit import V16F32, Emit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at, u8_at, u16_at, u32_at


def build(target: Target, type: str, scaled: int = 1) -> Callable[..., None]:
    """The kernel pack for a tensor type. Rows beyond N become zero. Without `scaled` the blocks of a row have
    one scale among them, or no weight but zeros, and it becomes the row's."""
    return _floats(FLOAT_BYTES[type]) if type in FLOAT_BYTES else _quantized(target, type, bool(scaled))


def _floats(width: int) -> Callable[..., None]:
    items_at = u32_at if width == 4 else u16_at

    def pack(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        k = a[Arg.K]
        for tile in range(a[Arg.TILES] * thread // threads, a[Arg.TILES] * (thread + 1) // threads):
            to = items_at(a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE])
            source = items_at(a[Arg.SOURCE] + tile * ROWS * a[Arg.SOURCE_STRIDE])
            rows = min(ROWS, a[Arg.N] - tile * ROWS)
            for i in range(k):
                for r in range(rows):
                    to[ROWS * i + r] = source[k * r + i]
                for r in range(rows, ROWS):
                    to[ROWS * i + r] = 0

    return pack


def _quantized(target: Target, type_name: str, scaled: bool) -> Callable[..., None]:
    from edgellm.kernels.blocks import DECODERS, inlined

    decode, form = DECODERS[type_name], CODE_FORMS[type_name]
    elements, block_bytes, block, asym = form.elements, form.nbytes, form.block, form.asym
    relative = not form.half_scales or not scaled
    layout = form.layout(0, scaled)
    before = layout.line
    per_line, group_stride, planes = layout.group, layout.group_stride, layout.planes
    inputs, span = layout.group * block, form.span
    (bits, _, offset), (high_bits, high_shift, high_offset) = planes[0], planes[-1]
    strip, strip_bytes = layout.strip, layout.strip_bytes
    two = len(planes) == 2
    store_halves = _make_store_halves(target)

    @inlined
    def store_plane(codes, to, bits, shift):  # type: ignore[no-untyped-def]
        """One plane of a strip whose rows of codes are `span` bytes apart; four inputs to a word."""
        per_unit = 32 // bits
        mask = ((1 << bits) - 1) * 0x01010101
        for unit in range(strip // per_unit):
            words = u32_at(to + 64 * unit)
            for r in range(ROWS):
                source = u32_at(codes + r * span + unit * per_unit)
                word = np.uint32(0)
                for i in range(per_unit // 4):
                    word |= np.uint32(((source[i] >> shift) & mask) << (bits * i))
                words[r] = word

    def pack(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        k, factor = a[Arg.K], np.float32(f64_at(args)[Arg.FACTOR])
        blocks = k // block
        padded = -(-blocks // per_line) * per_line
        codes = a[Arg.SCRATCH]
        scales = codes + ROWS * span
        minima = scales + 64 * padded
        largest = f32_at(minima + 64 * padded)
        for tile in range(a[Arg.TILES] * thread // threads, a[Arg.TILES] * (thread + 1) // threads):
            w = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE]
            rows = min(ROWS, a[Arg.N] - tile * ROWS)
            if rows < ROWS:
                u8 = u8_at(codes)
                for i in range(ROWS * span + 128 * padded):
                    u8[i] = 0
            for first in range(0, k, span):
                count = min(span, k - first)
                for r in range(rows):
                    source = a[Arg.SOURCE] + (tile * ROWS + r) * a[Arg.SOURCE_STRIDE]
                    for i in range(0, count, elements):
                        at = 64 * ((first + i) // block) + 4 * r
                        decode(
                            u8_at(source + (first + i) // elements * block_bytes),
                            u8_at(codes + r * span + i),
                            f32_at(scales + at),
                            f32_at(minima + at),
                        )
                    rest = u8_at(codes + r * span)
                    for i in range(count, span):
                        rest[i] = 0
                for i in range(0, -(-count // inputs) * inputs, strip):
                    group = w + ROW_SCALES + (first + i) // inputs * group_stride + before
                    to = group + (first + i) % inputs // strip * strip_bytes
                    store_plane(codes + i, to + offset, bits, 0)
                    if two:
                        store_plane(codes + i, to + high_offset, high_bits, high_shift)
            for r in range(ROWS):
                largest[r] = 1
            if relative:
                for r in range(ROWS):
                    largest[r] = 0
                every = f32_at(scales)
                for n in range(2 * padded if asym else padded):
                    for r in range(ROWS):
                        largest[r] = max(largest[r], abs(every[ROWS * n + r]))
                for r in range(ROWS):
                    if scaled and largest[r] == 0:
                        largest[r] = 1  # what the block scales are divided by
            for n in range(padded if scaled else 0):
                line = w + ROW_SCALES + n // per_line * group_stride
                store_halves(scales + 64 * n, minima + 64 * padded, line + 32 * (n % per_line))
                if asym:
                    store_halves(minima + 64 * n, minima + 64 * padded, line + 32)
            for r in range(ROWS):
                f32_at(w)[r] = largest[r] * factor

    return pack


def _make_store_halves(target: Target) -> Any:
    """Intrinsic store_halves(x, divisor, to): 16 float32 x / divisor, as float16."""

    @intrinsic
    def store_halves(tc: Any, x: Any, divisor: Any, to: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            x, divisor = (e.load(value, V16F32, 64) for value in values[:2])
            e.store(e.float_to_half(builder.fdiv(x, divisor)), values[2], 32)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return store_halves

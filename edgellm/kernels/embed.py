"""Rows of a packed weight back to float32: the embedding of tokens or of positions."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from edgellm.kernels.layout import ROW_SCALES, ROWS, State, TileLayout
from edgellm.kernels.layout import Embed as Arg
from edgellm.kernels.linear_f import BYTES
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at, make_half_lane, u8_at, u16_at, u32_as_f32


def make_code_at(form: TileLayout) -> Callable[..., int]:
    """Inlined code_at(codes, row, i): the code of input i of a group, from the group's bytes."""
    planes = form.planes
    (bits, _, offset), (high_bits, high_shift, high_offset) = planes[0], planes[-1]
    two = len(planes) == 2
    strip, strip_bytes = form.strip, form.strip_bytes

    @numba.njit(inline="always")
    def part(codes, r, i, bits, offset):  # type: ignore[no-untyped-def]
        per_unit = 32 // bits
        place = i % strip
        byte = codes[i // strip * strip_bytes + offset + place // per_unit * 64 + r * 4 + i % 4]
        return (byte >> (place % per_unit // 4 * bits)) & ((1 << bits) - 1)

    @numba.njit(inline="always")
    def code_at(codes, r, i):  # type: ignore[no-untyped-def]
        code = part(codes, r, i, bits, offset)
        if two:
            code |= part(codes, r, i, high_bits, high_offset) << high_shift
        return code

    return code_at


def build(
    target: Target, kind: str, bits: int = 8, asym: int = 0, block: int = 32, scaled: int = 1
) -> Callable[..., None]:
    """The kernel embed for one packed form: kind "q" with its TileLayout, or "f32", "f16", "bf16"."""
    half_lane = make_half_lane(target)
    form = TileLayout(0, bits, bool(asym), block, bool(scaled))
    before = form.line
    per_line, group_stride = form.group, form.group_stride
    code_at = make_code_at(form)

    @numba.njit(inline="always")
    def quantized(a, tile, r, chunk, out, factor):  # type: ignore[no-untyped-def]
        line = tile + ROW_SCALES + chunk // per_line * group_stride
        scale = f32_at(tile)[r] * factor
        if scaled:
            scale = half_lane(line + chunk % per_line * 32, r) * f32_at(tile)[r] * factor
        if asym:
            low = half_lane(line + 32, r) * f32_at(tile)[r] * factor
        else:
            low = -scale * np.float32(1 << a[Arg.ZERO_SHIFT])
        codes = u8_at(line + before)
        for i in range(block):
            code = code_at(codes, r, chunk % per_line * block + i)
            out[chunk * block + i] = scale * np.float32(code) + low

    @numba.njit(inline="always")
    def plain(a, tile, r, chunk, out, factor):  # type: ignore[no-untyped-def]
        first = chunk * a[Arg.CHUNK]
        last = min(first + a[Arg.CHUNK], a[Arg.INPUTS])
        for i in range(first, last):
            at = tile + i * (ROWS * BYTES_OF_KIND)
            if kind == "f32":
                value = f32_at(at)[r]
            elif kind == "f16":
                value = half_lane(at, r)
            else:
                value = u32_as_f32(np.uint32(u16_at(at)[r]) << np.uint32(16))
            out[i] = value * factor

    BYTES_OF_KIND = BYTES.get(kind, 0)
    decode = quantized if kind == "q" else plain

    def embed(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        factor = np.float32(f64_at(args)[Arg.FACTOR])
        ids, positions = i64_at(s[State.IDS]), i64_at(s[State.POSITIONS])
        items = s[State.TOKENS] * a[Arg.COUNT]
        for item in range(items * thread // threads, items * (thread + 1) // threads):
            t, chunk = item // a[Arg.COUNT], item % a[Arg.COUNT]
            row = positions[t] + a[Arg.SHIFT] if a[Arg.POSITIONS] != 0 else ids[t]
            tile = a[Arg.WEIGHT] + row // ROWS * a[Arg.TILE_STRIDE]
            decode(a, tile, row % ROWS, chunk, f32_at(a[Arg.OUT] + t * a[Arg.OUT_STRIDE]), factor)

    return embed

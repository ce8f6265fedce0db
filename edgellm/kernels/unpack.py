"""Reads the codes of a packed weight back out of their bit planes, the same for every instruction set."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgellm.kernels.layout import TileLayout
from edgellm.kernels.simd.emit import V64I8, Emit, const


def unpack(e: Emit, group: Any, form: TileLayout, j: int) -> list[Any]:
    """Codes of block j of the group whose codes begin at address `group`, behind its line of scales.

    Returns form.block / 4 vectors of 64 uint8 below 2^form.bits: byte 4 * row + i of vector v belongs to
    input 4 v + i of the block. Only what the block needs is loaded; nothing is prefetched.
    """
    b = e.b
    units: dict[int, Any] = {}
    vectors = []
    for first in range(j * form.block, (j + 1) * form.block, 4):
        code = None
        for plane in reversed(form.planes):  # in the order of addresses
            per_unit = 32 // plane.bits
            strip, place = divmod(first, form.strip)
            at = strip * form.strip_bytes + plane.offset + 64 * (place // per_unit)
            if at not in units:
                units[at] = e.load(e.offset(group, at), V64I8, 64)
            part = _moved(b, units[at], plane.bits * (first % per_unit // 4), plane.bits, plane.shift)
            code = part if code is None else b.or_(code, part)
        vectors.append(code)
    return vectors


def _moved(b: ir.IRBuilder, unit: Any, low: int, bits: int, to: int) -> Any:
    """Bits [low, low + bits) of every byte, moved to [to, to + bits); the others zero."""
    if bits == 8:
        return unit
    if low > to:
        unit = b.lshr(unit, const(V64I8, low - to))
    elif low < to:
        unit = b.shl(unit, const(V64I8, to - low))
    if low + bits == 8 and to == 0:
        return unit  # the shift has cleared the rest
    return b.and_(unit, const(V64I8, ((1 << bits) - 1) << to))

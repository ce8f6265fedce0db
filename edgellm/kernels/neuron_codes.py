"""The vectors of neurons in slots (formats/slots.py), decoded 16 weights at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgellm.kernels.simd.emit import V16F16, V16F32, V16I8, V16I32, Emit, const

UNIT = {"q4_0": 32, "q8_0": 32, "t2": 64}  # weights that are decoded together
UNIT_BYTES = {"q4_0": 18, "q8_0": 34, "t2": 16}
SCALED = ("q4_0", "q8_0")  # codecs with a scale in every unit


def codes(e: Emit, at: Any, codec: str) -> list[Any]:
    """The whole numbers of the unit at `at`, in order, as float32 vectors of 16."""
    b = e.b
    if codec == "q8_0":
        found = [b.sext(e.load(e.offset(at, 2 + 16 * i), V16I8), V16I32) for i in range(2)]
    elif codec == "q4_0":
        both = b.zext(e.load(e.offset(at, 2), V16I8), V16I32)
        halves = (b.and_(both, const(V16I32, 15)), b.lshr(both, const(V16I32, 4)))
        found = [b.sub(half, const(V16I32, 8)) for half in halves]
    else:
        all_four = b.zext(e.load(at, V16I8), V16I32)
        quarters = (b.and_(b.lshr(all_four, const(V16I32, 2 * i)), const(V16I32, 3)) for i in range(4))
        found = [b.sub(quarter, const(V16I32, 1)) for quarter in quarters]
    return [b.sitofp(one, V16F32) for one in found]


def scale(e: Emit, at: Any) -> Any:
    """The unit's scale in all lanes."""
    bits = e.splat(e.load(at, ir.IntType(16)))
    return e.half_to_float(e.b.bitcast(bits, V16F16))


def activations(e: Emit, at: Any, rounded: bool) -> Any:
    """16 float32 at the address, or int8 made float32."""
    if rounded:
        return e.b.sitofp(e.b.sext(e.load(at, V16I8), V16I32), V16F32)
    return e.load(at, V16F32, 4)

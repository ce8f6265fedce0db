"""The vectors of neurons in slots (formats/slots.py), decoded a unit of 64 weights at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgellm.kernels.simd.emit import I8, V16F16, V16F32, V16I8, V16I32, V64I8, Emit, const

UNIT = 64  # weights that are decoded together: two blocks
GROUP = 8  # units whose scales are loaded together
UNIT_BYTES = {"q4_0": 32, "q8_0": 64, "t2": 16}  # of codes
SCALED = ("q4_0", "q8_0")  # codecs with a scale for every block of 32
ZERO = {"q4_0": 8, "q8_0": 128, "t2": 1}  # the code of 0
MOST = {"q4_0": 15, "q8_0": 255, "t2": 3}  # the largest code
_V32I8 = ir.VectorType(I8, 32)


def scale_bytes(codec: str, units: int) -> int:
    """Of the scales in front of the codes of a vector."""
    return 4 * units if codec in SCALED else 0


def code_bytes(e: Emit, at: Any, codec: str) -> Any:
    """The 64 codes of the unit at `at`, in order: (64,) uint8."""
    b = e.b
    if codec == "q8_0":
        return e.load(at, V64I8)
    if codec == "q4_0":
        both = e.load(at, _V32I8)
        low, high = b.and_(both, const(_V32I8, 15)), b.lshr(both, const(_V32I8, 4))
        return e.shuffle(low, range(64), high)
    all_four = e.load(at, V16I8)
    quarters = [b.and_(b.lshr(all_four, const(V16I8, 2 * i)), const(V16I8, 3)) for i in range(4)]
    halves = [e.shuffle(quarters[i], range(32), quarters[i + 1]) for i in (0, 2)]
    return e.shuffle(halves[0], range(64), halves[1])


def values(e: Emit, at: Any, codec: str) -> list[Any]:
    """What the codes of the unit at `at` stand for, before scaling: four float32 vectors of 16, in order."""
    b = e.b
    if codec == "q8_0":
        wide = [b.zext(e.load(e.offset(at, 16 * i), V16I8), V16I32) for i in range(4)]
    elif codec == "q4_0":
        both = [b.zext(e.load(e.offset(at, 16 * i), V16I8), V16I32) for i in range(2)]
        wide = [b.and_(x, const(V16I32, 15)) for x in both] + [b.lshr(x, const(V16I32, 4)) for x in both]
    else:
        all_four = b.zext(e.load(at, V16I8), V16I32)
        wide = [b.and_(b.lshr(all_four, const(V16I32, 2 * i)), const(V16I32, 3)) for i in range(4)]
    return [b.sitofp(b.sub(x, const(V16I32, ZERO[codec])), V16F32) for x in wide]


def scales(e: Emit, at: Any) -> Any:
    """The 16 float16 scales at `at`, as float32. What lies behind a vector's last one is no scale."""
    return e.half_to_float(e.load(at, V16F16))


def two_scales(e: Emit, of_blocks: Any, unit: int) -> Any:
    """(16,): the scale of a unit's first block eight times, then that of its second."""
    return e.shuffle(of_blocks, [2 * unit] * 8 + [2 * unit + 1] * 8)


def first_two(e: Emit, of_blocks: Any) -> Any:
    """The vector with zeros behind its first two numbers."""
    mask = ir.Constant(ir.VectorType(ir.IntType(1), 16), [1, 1] + [0] * 14)
    return e.b.select(mask, of_blocks, const(V16F32, 0.0))

"""Units of Base3Layout: five ternary digits a byte, taken apart in vector registers.

A unit holds digits of five tiles for the same four inputs, so their products share what is loaded of the
activations. Where the target looks up bytes in tables of 256, digits need not be separated to be summed:
of the table's entry p = d0 + 4 d1 + 16 d2 + 64 d3 each masked pair of bits is multiplied where it stands,
and a shift of the sum puts it right; the last pair and the fifth digit follow from the sums over p and over
the byte itself, which are linear in the digits. So a unit costs one lookup, three ANDs and five products.
"""

from __future__ import annotations

from typing import Any

from edgellm.kernels.layout import TRITS
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import V16I32, V64I8, Emit, const

POWERS = [3**d for d in range(TRITS)]
_INVERSE_81 = pow(81, -1, 2**32)  # exact division of int32 multiples of 81
_MASKS = (3, 3 << 2, 3 << 4)


def digits(e: Emit, unit: Any) -> list[Any]:
    """Five vectors of 64 uint8, the digits 0, 1 or 2 of a unit, the lowest first."""
    if e.target.byte_permute:
        pairs = _lookup(e, unit)
        first = [e.b.and_(_shifted(e, pairs, 2 * d), const(V64I8, 3)) for d in range(TRITS - 1)]
        return [*first, _at_least(e, unit, (81, 162))]
    found, rest = [], unit
    for d in reversed(range(TRITS)):
        digit = _at_least(e, rest, (POWERS[d], 2 * POWERS[d])) if d else rest
        found.append(digit)
        rest = e.b.sub(rest, _times(e, digit, POWERS[d]))
    return found[::-1]


def add(e: Emit, sums: list[Any], unit: Any, x: Any) -> list[Any]:
    """sums, TRITS vectors of int32 that begin at 0, plus the products of a unit with the four activations x;
    what they mean, `totals` says."""
    if not e.target.byte_permute:
        return [dot4(e, s, digit, x, 2) for s, digit in zip(sums, digits(e, unit), strict=True)]
    pairs = _lookup(e, unit)
    parts = [e.b.and_(pairs, const(V64I8, mask)) for mask in _MASKS]
    return [dot4(e, s, part, x, 255) for s, part in zip(sums, [*parts, pairs, unit], strict=True)]


def totals(e: Emit, sums: list[Any]) -> list[Any]:
    """int32 sums of (digit times activation) of each tile, exactly."""
    if not e.target.byte_permute:
        return sums
    b = e.b
    pairs, whole = sums[3], sums[4]
    found = [b.ashr(s, const(V16I32, 2 * d)) if d else s for d, s in enumerate(sums[:3])]
    for s in sums[:3]:
        pairs = b.sub(pairs, s)
    found.append(b.ashr(pairs, const(V16I32, 6)))
    for d, total in enumerate(found):
        whole = b.sub(whole, b.mul(total, const(V16I32, POWERS[d])) if d else total)
    return [*found, b.mul(whole, const(V16I32, _INVERSE_81))]


def _lookup(e: Emit, unit: Any) -> Any:
    """The first four digits of each byte, two bits each."""
    entries = [sum(v // 3**d % 3 << 2 * d for d in range(TRITS - 1)) for v in range(256)]
    tables = [const(V64I8, [_signed(x) for x in entries[at : at + 64]]) for at in range(0, 256, 64)]
    fn = e.intrinsic("llvm.x86.avx512.vpermi2var.qi.512", V64I8, [V64I8] * 3)
    halves = [e.b.call(fn, [tables[i], unit, tables[i + 1]]) for i in (0, 2)]
    high = e.b.icmp_signed("<", unit, const(V64I8, 0))
    return e.b.select(high, halves[1], halves[0])


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _shifted(e: Emit, x: Any, bits: int) -> Any:
    return e.b.lshr(x, const(V64I8, bits)) if bits else x


def _at_least(e: Emit, x: Any, limits: tuple[int, int]) -> Any:
    """How many of the limits each byte reaches: 0, 1 or 2."""
    b = e.b
    counts = [b.zext(b.icmp_unsigned(">=", x, const(V64I8, _signed(limit))), V64I8) for limit in limits]
    return b.add(*counts)


def _times(e: Emit, digit: Any, factor: int) -> Any:
    """digit * factor for digits up to 2; bytes have no multiplication."""
    b, zero = e.b, const(V64I8, 0)
    one = b.select(b.icmp_unsigned(">=", digit, const(V64I8, 1)), const(V64I8, _signed(factor)), zero)
    two = b.select(b.icmp_unsigned(">=", digit, const(V64I8, 2)), const(V64I8, _signed(factor)), zero)
    return b.add(one, two)

"""Encodings of ternary weights: NumPy alone, exact both ways, for every size.

A trit is -1, 0 or 1. A group is G trits t[0] .. t[G-1] of one row, whose value is the balanced ternary number
v = sum of t[i] 3^i, from -h to h with h = (3^G - 1) / 2. Three codes of a group follow from it:

    full   v + h, below 3^G: the sum over (t[i] + 1) 3^i
    half   |v|, at most h, and a sign bit: a table of h + 1 sums serves both signs
    signed v if v >= 0, else h + |v|: below 3^G; the table holds 0, the sums of v > 0, then their negatives

A last group that k leaves incomplete is filled with zeros. Bits of packed codes count from the lowest bit of
the first byte on.
"""

from __future__ import annotations

import numpy as np

GROUPS = (2, 3, 4, 5)


def ternarize(weights: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """float (n, k) -> int8 trits (n, k) and the scale, so that weights are about scale * trits.

    scale = mean |w|, trit = round(w / scale) clipped to [-1, 1] (BitNet b1.58, arXiv:2402.17764, equations 1
    to 3). Raises ValueError for weights that are not finite.
    """
    scale = np.float32(np.abs(weights).mean(dtype=np.float64)) if weights.size else np.float32(0)
    if not np.isfinite(scale):
        raise ValueError("weights to be rounded to ternary must be finite")
    if scale == 0:
        return np.zeros(weights.shape, np.int8), scale
    return np.clip(np.rint(weights / scale), -1, 1).astype(np.int8), scale


def tables(g: int) -> np.ndarray:
    """int8 (3^g, g): the trits of every group, in the order of the full code."""
    _check_group(g)
    powers = 3 ** np.arange(g)
    return (np.arange(3**g)[:, None] // powers % 3 - 1).astype(np.int8)


def group_values(trits: np.ndarray, g: int) -> np.ndarray:
    """int8 trits (n, k) -> int16 (n, ceil(k / g)): the value of each group."""
    _check_group(g)
    _check_trits(trits)
    n, k = trits.shape
    padded = np.zeros((n, -(-k // g) * g), np.int16)
    padded[:, :k] = trits
    return padded.reshape(n, -1, g) @ (3 ** np.arange(g)).astype(np.int16)


def from_group_values(values: np.ndarray, g: int, k: int) -> np.ndarray:
    """The inverse of group_values: int8 (n, k). Raises ValueError if the shapes, the values or the trits
    behind k, which must be 0, do not fit."""
    _check_group(g)
    n, groups = values.shape
    half = (3**g - 1) // 2
    if groups != -(-k // g):
        raise ValueError(f"{k} trits are {-(-k // g)} groups of {g}, not {groups}")
    if values.size and (values.min() < -half or values.max() > half):
        raise ValueError(f"a group of {g} trits has a value from {-half} to {half}")
    trits = tables(g)[values.astype(np.int64) + half].reshape(n, groups * g)
    if trits[:, k:].any():
        raise ValueError("the trits that fill the last group must be 0")
    return np.ascontiguousarray(trits[:, :k])


def full_codes(values: np.ndarray, g: int) -> np.ndarray:
    """uint8: values + h."""
    return (values + (3**g - 1) // 2).astype(np.uint8)


def from_full_codes(codes: np.ndarray, g: int) -> np.ndarray:
    """int16 values."""
    return codes.astype(np.int16) - np.int16((3**g - 1) // 2)


def half_codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 |values|, and bool: True for the negative ones."""
    return np.abs(values).astype(np.uint8), values < 0


def from_half_codes(codes: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """int16 values. Raises ValueError for a negative zero, which half_codes never makes."""
    if (negative & (codes == 0)).any():
        raise ValueError("a group of zeros has no sign")
    return np.where(negative, -codes.astype(np.int16), codes.astype(np.int16))


def signed_codes(values: np.ndarray, g: int) -> np.ndarray:
    """uint8: v for v >= 0, h + |v| below."""
    return np.where(values < 0, (3**g - 1) // 2 - values, values).astype(np.uint8)


def from_signed_codes(codes: np.ndarray, g: int) -> np.ndarray:
    """int16 values."""
    half, found = (3**g - 1) // 2, codes.astype(np.int16)
    return np.where(found > half, half - found, found)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (n, m), each below 2^bits -> uint8 (n, ceil(m * bits / 8)): code j from bit bits * j on."""
    if codes.size and int(codes.max()) >= 1 << bits:
        raise ValueError(f"a code does not fit {bits} bits")
    spread = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(spread.reshape(len(codes), -1), axis=1, bitorder="little")


def unpack_bits(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of pack_bits: uint8 (n, count). Raises ValueError if the data is too short."""
    if data.shape[1] < -(-count * bits // 8):
        raise ValueError(f"{count} codes of {bits} bits need {-(-count * bits // 8)} bytes a row")
    flat = np.unpackbits(data, axis=1, bitorder="little", count=count * bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return (flat.reshape(len(data), count, bits) * weights).sum(-1, dtype=np.uint8)


def pack_base3(trits: np.ndarray) -> np.ndarray:
    """int8 (n, k) -> uint8 (n, ceil(k / 5)), 1.6 bits a trit: the full code of groups of five."""
    return full_codes(group_values(trits, 5), 5)


def unpack_base3(data: np.ndarray, k: int) -> np.ndarray:
    """The inverse of pack_base3: int8 (n, k). Raises ValueError for bytes that stand for no trits."""
    return from_group_values(from_full_codes(data, 5), 5, k)


def pack_two_bits(trits: np.ndarray) -> np.ndarray:
    """int8 (n, k) -> uint8 (n, ceil(k / 4)): trit + 1, four a byte."""
    _check_trits(trits)
    return pack_bits((trits + 1).astype(np.uint8), 2)


def unpack_two_bits(data: np.ndarray, k: int) -> np.ndarray:
    """The inverse of pack_two_bits: int8 (n, k). Raises ValueError for the code 3, which is no trit."""
    codes = unpack_bits(data, 2, k)
    if (codes == 3).any():
        raise ValueError("the two-bit code 3 is no trit")
    return codes.astype(np.int8) - np.int8(1)


def _check_group(g: int) -> None:
    if g not in GROUPS:
        raise ValueError(f"a group has 2 to 5 trits, not {g}")


def _check_trits(trits: np.ndarray) -> None:
    if trits.size and (trits.min() < -1 or trits.max() > 1):
        raise ValueError("trits are -1, 0 and 1")

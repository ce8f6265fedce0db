"""Decoders of the ggml quantised blocks into integer codes and float32 scales, without loss.

Each is decode(b, q, s, m): b points to a block's bytes, q to its codes to be written (uint8), s and m to the
scale and minimum of its first block of inputs (float32); those of the next one follow STEP numbers later.
Layouts follow the block structs and dequantisers of ggml-common.h and ggml-quants.c.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from edgellm.kernels.layout import ROWS
from edgellm.kernels.simd.scalar import u32_as_f32

STEP = ROWS  # the scales of the 16 rows of a tile lie side by side
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

inlined = numba.njit(inline="always", error_model="numpy")


@inlined
def _half(b, at):
    """The float16 at byte `at` as float32: exact, but an infinity or NaN becomes 65536 or more."""
    bits = np.uint32(b[at]) | (np.uint32(b[at + 1]) << np.uint32(8))
    magnitude = u32_as_f32(np.uint32((bits & 0x7FFF) << 13)) * np.float32(2.0**112)
    return -magnitude if bits & 0x8000 else magnitude


@inlined
def _nibbles(b, at, n, q, to):
    """n bytes to 2 n codes: all low nibbles, then all high ones."""
    for i in range(n):
        q[to + i] = b[at + i] & 15
        q[to + n + i] = b[at + i] >> 4


@inlined
def _two_bits(b, at, q):
    """64 bytes to 256 codes: planes of 32 bytes, four shifts each."""
    for h in range(2):
        for n in range(4):
            for i in range(32):
                q[128 * h + 32 * n + i] = (b[at + 32 * h + i] >> (2 * n)) & 3


@inlined
def _fifth_bits(b, at, q):
    """One bit for each of 32 codes."""
    for i in range(32):
        q[i] |= ((b[at + i // 8] >> (i % 8)) & 1) << 4


@inlined
def _q4_0(b, q, s, m):
    s[0] = _half(b, 0)
    _nibbles(b, 2, 16, q, 0)


@inlined
def _q4_1(b, q, s, m):
    s[0], m[0] = _half(b, 0), _half(b, 2)
    _nibbles(b, 4, 16, q, 0)


@inlined
def _q5_0(b, q, s, m):
    s[0] = _half(b, 0)
    _nibbles(b, 6, 16, q, 0)
    _fifth_bits(b, 2, q)


@inlined
def _q5_1(b, q, s, m):
    s[0], m[0] = _half(b, 0), _half(b, 2)
    _nibbles(b, 8, 16, q, 0)
    _fifth_bits(b, 4, q)


@inlined
def _q8_0(b, q, s, m):
    s[0] = _half(b, 0)
    for i in range(32):
        q[i] = b[2 + i] ^ 128


@inlined
def _q2_k(b, q, s, m):
    d, dmin = _half(b, 80), _half(b, 82)
    for j in range(16):
        s[STEP * j] = d * np.float32(b[j] & 15)
        m[STEP * j] = -dmin * np.float32(b[j] >> 4)
    _two_bits(b, 16, q)


@inlined
def _q3_k(b, q, s, m):
    d = _half(b, 108)
    for j in range(16):
        low = (b[96 + j % 8] >> (j // 8 * 4)) & 15
        high = (b[104 + j % 4] >> (j // 4 * 2)) & 3
        s[STEP * j] = d * np.float32((low | (high << 4)) - 32)
    _two_bits(b, 32, q)
    for n in range(8):
        for i in range(32):
            q[32 * n + i] |= ((b[i] >> n) & 1) << 2


@inlined
def _k4_scales(b, s, m):
    """d and dmin, then eight 6-bit scales and minima in 12 bytes (ggml's get_scale_min_k4)."""
    d, dmin = _half(b, 0), _half(b, 2)
    for j in range(4):
        s[STEP * j] = d * np.float32(b[4 + j] & 63)
        m[STEP * j] = -dmin * np.float32(b[8 + j] & 63)
        s[STEP * (4 + j)] = d * np.float32((b[12 + j] & 15) | ((b[4 + j] >> 6) << 4))
        m[STEP * (4 + j)] = -dmin * np.float32((b[12 + j] >> 4) | ((b[8 + j] >> 6) << 4))


@inlined
def _q4_k(b, q, s, m):
    _k4_scales(b, s, m)
    for c in range(4):
        _nibbles(b, 16 + 32 * c, 32, q, 64 * c)


@inlined
def _q5_k(b, q, s, m):
    _k4_scales(b, s, m)
    for c in range(4):
        _nibbles(b, 48 + 32 * c, 32, q, 64 * c)
    for n in range(8):
        for i in range(32):
            q[32 * n + i] |= ((b[16 + i] >> n) & 1) << 4


@inlined
def _q6_k(b, q, s, m):
    d = _half(b, 208)
    for j in range(16):
        s[STEP * j] = d * np.float32(np.int8(b[192 + j]))
    for h in range(2):
        _nibbles(b, 64 * h, 64, q, 128 * h)
        for n in range(4):
            for i in range(32):
                q[128 * h + 32 * n + i] |= ((b[128 + 32 * h + i] >> (2 * n)) & 3) << 4


@inlined
def _iq4(b, at, q, to):
    """16 bytes to 32 codes: the value of each nibble, plus 128."""
    _nibbles(b, at, 16, q, to)
    for i in range(32):
        q[to + i] = IQ4_VALUES[q[to + i]] + 128


@inlined
def _iq4_nl(b, q, s, m):
    s[0] = _half(b, 0)
    _iq4(b, 2, q, 0)


@inlined
def _iq4_xs(b, q, s, m):
    d = _half(b, 0)
    for j in range(8):
        low = (b[4 + j // 2] >> (j % 2 * 4)) & 15
        high = (b[2 + j // 4] >> (j % 4 * 2)) & 3
        s[STEP * j] = d * np.float32((low | (high << 4)) - 32)
        _iq4(b, 8 + 16 * j, q, 32 * j)


@inlined
def _trits(b, at, n, digits, q, to):
    """n bytes that hold base-3 digits as a fraction of 256: digit d is (byte * 3^d mod 256) * 3 / 256."""
    power = 1
    for d in range(digits):
        for i in range(n):
            q[to + n * d + i] = (((b[at + i] * power) & 255) * 3) >> 8
        power *= 3


@inlined
def _tq1_0(b, q, s, m):
    for j in range(8):
        s[STEP * j] = _half(b, 52)
    _trits(b, 0, 32, 5, q, 0)
    _trits(b, 32, 16, 5, q, 160)
    _trits(b, 48, 4, 4, q, 240)


@inlined
def _tq2_0(b, q, s, m):
    for j in range(8):
        s[STEP * j] = _half(b, 64)
    _two_bits(b, 0, q)


DECODERS: dict[str, Callable[..., None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}  # fmt: skip

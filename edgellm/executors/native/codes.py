"""Blocks of the ggml quantised types as integer codes with scales, without loss.

Layouts follow the block structs and dequantisers of ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int16
)


@dataclass
class Codes:
    """weight = scale * (code - 2^zero_shift), or with `minimum` scale * code + minimum.

    q: (rows, k) uint8, below 2^bits. scale and minimum: (rows, k / block) float32.
    exact_half: the scales were float16 in the file, so float16 keeps them.
    """

    q: np.ndarray
    bits: int  # width of the packed form: 4 or 8
    block: int
    scale: np.ndarray
    minimum: np.ndarray | None = None
    zero_shift: int = 0
    exact_half: bool = True


def _half(raw: np.ndarray) -> np.ndarray:
    """(rows, blocks, 2) bytes of float16 to (rows, blocks) float32."""
    return np.ascontiguousarray(raw).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(..., n) bytes to (..., 2 n): all low nibbles, then all high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _flat(q: np.ndarray) -> np.ndarray:
    return q.reshape(q.shape[0], -1)


def _q4_0(raw: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(raw[..., 2:])), 4, 32, _half(raw[..., :2]), zero_shift=3)


def _q4_1(raw: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(raw[..., 4:])), 4, 32, _half(raw[..., :2]), _half(raw[..., 2:4]))


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """(..., 4) bytes to (..., 32) values 0 or 16."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=-1, bitorder="little") << 4


def _q5_0(raw: np.ndarray) -> Codes:
    q = _nibbles(raw[..., 6:]) | _fifth_bits(raw[..., 2:6])
    return Codes(_flat(q), 8, 32, _half(raw[..., :2]), zero_shift=4)


def _q5_1(raw: np.ndarray) -> Codes:
    q = _nibbles(raw[..., 8:]) | _fifth_bits(raw[..., 4:8])
    return Codes(_flat(q), 8, 32, _half(raw[..., :2]), _half(raw[..., 2:4]))


def _q8_0(raw: np.ndarray) -> Codes:
    return Codes(_flat(raw[..., 2:] ^ 128), 8, 32, _half(raw[..., :2]), zero_shift=7)


def _two_bits(qs: np.ndarray) -> np.ndarray:
    """(rows, blocks, 64) bytes to (rows, blocks, 256) values 0..3: planes of 32 bytes, four shifts each."""
    planes = qs.reshape(*qs.shape[:2], 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 1, 4, 1)
    return ((planes >> shifts) & 3).reshape(*qs.shape[:2], 256)


def _q2_k(raw: np.ndarray) -> Codes:
    sub, d, dmin = raw[..., :16], _half(raw[..., 80:82]), _half(raw[..., 82:84])
    scale = d[..., None] * (sub & 15)
    minimum = -dmin[..., None] * (sub >> 4)
    return Codes(_flat(_two_bits(raw[..., 16:80])), 4, 16, _flat(scale), _flat(minimum), exact_half=False)


def _q3_k(raw: np.ndarray) -> Codes:
    low = _two_bits(raw[..., 32:96])
    bits = np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1)
    high = (raw[..., None, :32] >> bits) & 1
    q = low | (high.reshape(low.shape) << 2)
    packed = raw[..., 96:108]
    nibbles = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    tops = (packed[..., None, 8:12] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
    sub = (nibbles | (tops.reshape(nibbles.shape) << 4)).astype(np.float32) - 32
    scale = _half(raw[..., 108:110])[..., None] * sub
    return Codes(_flat(q), 4, 16, _flat(scale), zero_shift=2, exact_half=False)


def _k4_scales(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes to eight 6-bit scales and eight 6-bit minima (ggml's get_scale_min_k4)."""
    a, b, c = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    minimum = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _q4_k(raw: np.ndarray) -> Codes:
    scale, minimum = _k4_scales(raw[..., 4:16])
    q = _nibbles(raw[..., 16:].reshape(*raw.shape[:2], 4, 32))
    d, dmin = _half(raw[..., :2])[..., None], _half(raw[..., 2:4])[..., None]
    return Codes(_flat(q), 4, 32, _flat(d * scale), _flat(-dmin * minimum), exact_half=False)


def _q5_k(raw: np.ndarray) -> Codes:
    scale, minimum = _k4_scales(raw[..., 4:16])
    q = _nibbles(raw[..., 48:].reshape(*raw.shape[:2], 4, 32)).reshape(*raw.shape[:2], 8, 32)
    bits = np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1)
    q = q | (((raw[..., None, 16:48] >> bits) & 1) << 4)
    d, dmin = _half(raw[..., :2])[..., None], _half(raw[..., 2:4])[..., None]
    return Codes(_flat(q), 8, 32, _flat(d * scale), _flat(-dmin * minimum), exact_half=False)


def _q6_k(raw: np.ndarray) -> Codes:
    low = raw[..., :128].reshape(*raw.shape[:2], 2, 64)
    nibbles = np.concatenate([low & 15, low >> 4], axis=-1)  # (rows, blocks, 2, 128)
    tops = raw[..., 128:192].reshape(*raw.shape[:2], 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 1, 4, 1)
    q = nibbles | (((tops >> shifts) & 3) << 4).reshape(nibbles.shape)
    scale = _half(raw[..., 208:210])[..., None] * raw[..., 192:208].view(np.int8)
    return Codes(_flat(q), 8, 16, _flat(scale), zero_shift=5, exact_half=False)


def _iq4_codes(nibbles: np.ndarray) -> np.ndarray:
    return (IQ4_VALUES + 128).astype(np.uint8)[nibbles]


def _iq4_nl(raw: np.ndarray) -> Codes:
    return Codes(_flat(_iq4_codes(_nibbles(raw[..., 2:]))), 8, 32, _half(raw[..., :2]), zero_shift=7)


def _iq4_xs(raw: np.ndarray) -> Codes:
    high = np.ascontiguousarray(raw[..., 2:4]).view(np.uint16)
    tops = (high >> (2 * np.arange(8, dtype=np.uint16))) & 3
    lows = np.stack([raw[..., 4:8] & 15, raw[..., 4:8] >> 4], axis=-1).reshape(*raw.shape[:2], 8)
    sub = (lows | (tops << 4)).astype(np.float32) - 32
    q = _iq4_codes(_nibbles(raw[..., 8:].reshape(*raw.shape[:2], 8, 16)))
    scale = _half(raw[..., :2])[..., None] * sub
    return Codes(_flat(q), 8, 32, _flat(scale), zero_shift=7, exact_half=False)


def _trits(raw: np.ndarray, digits: int) -> np.ndarray:
    """Bytes that hold base-3 digits as a fraction of 256: digit n is (byte * 3^n mod 256) * 3 / 256."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:digits, None]
    return ((raw[..., None, :] * powers).astype(np.uint16) * 3 >> 8).astype(np.uint8)


def _tq1_0(raw: np.ndarray) -> Codes:
    parts = [_trits(raw[..., :32], 5), _trits(raw[..., 32:48], 5), _trits(raw[..., 48:52], 4)]
    q = np.concatenate([p.reshape(*raw.shape[:2], -1) for p in parts], axis=-1)
    return Codes(_flat(q), 4, 32, np.repeat(_half(raw[..., 52:54]), 8, axis=-1), zero_shift=0)


def _tq2_0(raw: np.ndarray) -> Codes:
    scale = np.repeat(_half(raw[..., 64:66]), 8, axis=-1)
    return Codes(_flat(_two_bits(raw[..., :64])), 4, 32, scale, zero_shift=0)


_DECODERS: dict[str, tuple[int, Callable[[np.ndarray], Codes]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
    "TQ1_0": (54, _tq1_0),
    "TQ2_0": (66, _tq2_0),
}
QUANTIZED_TYPES = frozenset(_DECODERS)


def decode_codes(data: np.ndarray, type_name: str) -> Codes:
    """Codes of (rows, row bytes) uint8 of one of QUANTIZED_TYPES."""
    block_bytes, decoder = _DECODERS[type_name]
    return decoder(data.reshape(data.shape[0], -1, block_bytes))


class CodeForm(NamedTuple):
    """What is known of a type's codes without any."""

    bits: int
    asym: bool
    block: int
    zero_shift: int


@cache
def code_form(type_name: str) -> CodeForm:
    """The form of a type's codes: what decides the kernel."""
    block_bytes, decoder = _DECODERS[type_name]
    codes = decoder(np.zeros((1, 1, block_bytes), np.uint8))
    return CodeForm(codes.bits, codes.minimum is not None, codes.block, codes.zero_shift)

"""Trits and block scales to TQ1_0 and TQ2_0 rows and back, exactly.

A code is a trit + 1: 0, 1 or 2. Both types have blocks of 256 weights that end in a float16 scale d.

    TQ2_0  64 bytes: bits 2n of byte 32 h + m hold the code of weight 128 h + 32 n + m
    TQ1_0  52 bytes in base 3, the first weight of a byte its highest digit: 32 bytes with weights
           m + 32 n (n < 5), 16 with 160 + m + 16 n (n < 5), 4 with 240 + m + 4 n (n < 4, and a digit 0).
           A byte is its number times 256 / 243, rounded up, so that products with 3 carry the digits out.

Source: ggml, ggml-quants.c (quantize_row_tq1_0_ref, quantize_row_tq2_0_ref).
"""

from __future__ import annotations

import numpy as np

from edgellm.formats.types import TENSOR_TYPES

BLOCK = TENSOR_TYPES["TQ2_0"].block
TERNARY_TYPES = ("TQ1_0", "TQ2_0")
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_PLACES = np.array([81, 27, 9, 3, 1], np.uint8)
# first weight, bytes, digits of each part of a TQ1_0 block
_PARTS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))


def _digits() -> np.ndarray:
    """uint8 (256, 5): the base 3 digits of every byte, highest first, by ggml's way of decoding them."""
    powers = 3 ** np.arange(5)
    return ((np.arange(256)[:, None] * powers % 256) * 3 >> 8).astype(np.uint8)


_DIGITS = _digits()


def pack_blocks(codes: np.ndarray, scales: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 codes (rows, columns) and float16 scales (rows, columns / 256) -> uint8 (rows, bytes per row)."""
    rows, columns = codes.shape
    blocks = codes.reshape(rows, columns // BLOCK, BLOCK)
    halves = np.ascontiguousarray(scales, "<f2").view(np.uint8).reshape(rows, -1, 2)
    packed = _pack_tq1_0(blocks) if type_name == "TQ1_0" else _pack_tq2_0(blocks)
    return np.concatenate([packed, halves], axis=-1).reshape(rows, -1)


def unpack_blocks(data: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of pack_blocks: codes (rows, columns) and scales (rows, columns / 256).

    Raises ValueError for the TQ2_0 code 3, which is no trit.
    """
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, TENSOR_TYPES[type_name].nbytes)
    scales = np.ascontiguousarray(blocks[..., -2:]).view("<f2")[..., 0]
    body = blocks[..., :-2]
    codes = _unpack_tq1_0(body) if type_name == "TQ1_0" else _unpack_tq2_0(body)
    return codes.reshape(rows, -1), scales


def _pack_tq2_0(blocks: np.ndarray) -> np.ndarray:
    rows, count, _ = blocks.shape
    quarters = blocks.reshape(rows, count, 2, 4, 32)
    packed: np.ndarray = np.bitwise_or.reduce(quarters << _SHIFTS, axis=3).reshape(rows, count, 64)
    return packed


def _unpack_tq2_0(body: np.ndarray) -> np.ndarray:
    if (body & (body >> 1) & 0x55).any():
        raise ValueError("the two-bit code 3 is no trit")
    rows, count, _ = body.shape
    return (body.reshape(rows, count, 2, 1, 32) >> _SHIFTS) & 3


def _pack_tq1_0(blocks: np.ndarray) -> np.ndarray:
    rows, count, _ = blocks.shape
    parts = []
    for first, nbytes, digits in _PARTS:
        part = blocks[..., first : first + nbytes * digits].reshape(rows, count, digits, nbytes)
        number = (part * _PLACES[:digits, None]).sum(axis=2, dtype=np.uint16)
        parts.append(((number * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate(parts, axis=-1)


def _unpack_tq1_0(body: np.ndarray) -> np.ndarray:
    rows, count, _ = body.shape
    parts, byte = [], 0
    for _, nbytes, digits in _PARTS:
        found = _DIGITS[body[..., byte : byte + nbytes], :digits]  # (rows, count, nbytes, digits)
        parts.append(found.swapaxes(2, 3).reshape(rows, count, nbytes * digits))
        byte += nbytes
    return np.concatenate(parts, axis=-1)

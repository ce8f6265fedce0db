"""The weights' way into the accelerator: a matrix as beats of its memory ports (TeLLMe, arXiv:2510.15926).

This is the one definition of the format; the HLS sources and the board's driver follow it.

A beat holds ROWS rows of one block of inputs, TABLES groups of GROUP trits of each. Bits count from the
lowest bit of byte 0 on:

    bits 140 r + 5 j ..   signed code (see encode) of group j of row r, 5 bits; r < 5, j < 28
    bits 700 .. 715       a float16 that has no part in the matrix: the vector of a norm travels along, an
                          element a beat
    bits 716 .. 767       zero

Beats lie block of inputs by block, in each the rows in order: (ceil(k / 84), ceil(n / 5), 96) bytes. Rows and
inputs that fill the last beats are zero. Port p of PORTS reads bytes 32 p to 32 p + 31 of every beat.
"""

from __future__ import annotations

import numpy as np

from edgellm.ternary.encode import (
    from_group_values,
    from_signed_codes,
    group_values,
    pack_bits,
    signed_codes,
    unpack_bits,
)

GROUP = 3  # trits of a table lookup
TABLES = 28  # lookups at once: groups of a block of inputs
ROWS = 5  # of a beat
INPUTS = GROUP * TABLES  # of a block
CODE_BITS = 5
BEAT_BYTES = 96
PORTS = 3
_ROW_BITS = CODE_BITS * TABLES
_EXTRA_BIT = ROWS * _ROW_BITS


def beats_shape(n: int, k: int) -> tuple[int, int, int]:
    """Shape of the beats of n rows and k inputs: (blocks of inputs, groups of rows, BEAT_BYTES)."""
    return -(-k // INPUTS), -(-n // ROWS), BEAT_BYTES


def to_beats(trits: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
    """int8 trits (n, k) -> uint8 of beats_shape(n, k).

    extra: float16 (m,), of which beat i, counted through all blocks, carries element i. Raises ValueError
    if it is longer than there are beats.
    """
    n, k = trits.shape
    blocks, groups, _ = beats_shape(n, k)
    padded = np.zeros((groups * ROWS, blocks * INPUTS), np.int8)
    padded[:n, :k] = trits
    codes = signed_codes(group_values(padded, GROUP), GROUP)
    codes = codes.reshape(groups, ROWS, blocks, TABLES).transpose(2, 0, 1, 3)
    bits = np.zeros((blocks * groups, 8 * BEAT_BYTES), np.uint8)
    packed = pack_bits(codes.reshape(blocks * groups, ROWS * TABLES), CODE_BITS)
    bits[:, :_EXTRA_BIT] = np.unpackbits(packed, axis=1, bitorder="little", count=_EXTRA_BIT)
    if extra is not None:
        if len(extra) > len(bits):
            raise ValueError(f"{len(bits)} beats have no room for {len(extra)} numbers")
        words = np.ascontiguousarray(extra, np.dtype("<f2")).view(np.uint8).reshape(-1, 2)
        bits[: len(extra), _EXTRA_BIT : _EXTRA_BIT + 16] = np.unpackbits(words, axis=1, bitorder="little")
    return np.packbits(bits, axis=1, bitorder="little").reshape(blocks, groups, BEAT_BYTES)


def from_beats(beats: np.ndarray, n: int, k: int) -> np.ndarray:
    """The inverse of to_beats: int8 trits (n, k). Raises ValueError if the beats are not those of such a
    matrix."""
    blocks, groups, _ = beats_shape(n, k)
    if beats.shape != (blocks, groups, BEAT_BYTES):
        raise ValueError(f"{n} rows of {k} trits are beats of shape {beats_shape(n, k)}, not {beats.shape}")
    codes = unpack_bits(beats.reshape(-1, BEAT_BYTES), CODE_BITS, ROWS * TABLES)
    if codes.size and codes.max() >= 3**GROUP:
        raise ValueError(f"a code of {GROUP} trits is below {3**GROUP}")
    values = from_signed_codes(codes, GROUP).reshape(blocks, groups, ROWS, TABLES)
    trits = from_group_values(
        values.transpose(1, 2, 0, 3).reshape(groups * ROWS, blocks * TABLES), GROUP, blocks * INPUTS
    )
    if trits[n:].any() or trits[:, k:].any():
        raise ValueError("rows and inputs that fill the last beats must be 0")
    return np.ascontiguousarray(trits[:n, :k])


def extra_of(beats: np.ndarray, count: int) -> np.ndarray:
    """float16 (count,): what the first beats carry beside the matrix."""
    flat = beats.reshape(-1, BEAT_BYTES)[:count]
    bits = np.unpackbits(flat, axis=1, bitorder="little")[:, _EXTRA_BIT : _EXTRA_BIT + 16]
    return np.packbits(bits, axis=1, bitorder="little").view(np.dtype("<f2")).reshape(-1)


def ports(beats: np.ndarray) -> np.ndarray:
    """uint8 (PORTS, ..., 32): what each port reads."""
    return np.stack(np.split(beats, PORTS, axis=-1))

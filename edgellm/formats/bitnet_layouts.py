"""The ternary layouts of bitnet.cpp (microsoft/BitNet): sizes, and matrices of codes from their bytes.

A code is trit + 1. M and K are the rows and columns of a matrix, m and k one of them. Behind the codes of
every tensor stand 32 bytes that begin with the float32 factor of the matrix.

Sources: ggml_nbytes of the fork's ggml.c for the sizes; quantize_i2_s of src/ggml-bitnet-mad.cpp for I2_S;
preprocess_weights_tl1 and preprocess_weights_tl2 of utils/convert-hf-to-gguf-bitnet.py for TL1 and TL2,
which are written in the order in which a kernel generated for one shape reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TAIL = 32  # bytes behind the codes: the factor, and zeros

# name: (columns of a block, columns between the four weights of a byte). The first of the four has the upper
# two bits. All machines wrote the first until 2026, and x86 does since; ARM builds of 2026 write the second.
I2_S = {"i2_s-128": (128, 32), "i2_s-64": (64, 16)}
I2_S_ROWS = "i2_s-rows4"  # x86 of 2026 built without ACT_PARALLEL: a byte has one column of four rows
KINDS = (*I2_S, I2_S_ROWS, "tl1", "tl2")


class Tiling(NamedTuple):
    """How TL1 and TL2 cut the matrices of one shape, by the names of kernel_config.ini."""

    bm: int  # rows of a tile
    bk: int  # columns of a tile
    bmm: int  # rows of the pieces that a tile is cut into


def code_bytes(kind: str, rows: int, columns: int) -> int:
    """Bytes of the codes, with what fills them up to the factor."""
    if kind != "tl2":
        return rows * columns // 4
    # As the fork has it, whatever the tiling: as if the last 256 columns were pairs and the others triples.
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return -(-size // 32) * 32


def tensor_bytes(kind: str, rows: int, columns: int) -> int:
    """Bytes of a whole tensor, to which GGUF's alignment is still to be added."""
    return code_bytes(kind, rows, columns) + TAIL


def misfit(kind: str, rows: int, columns: int) -> str | None:
    """What keeps I2_S from holding a matrix of this shape, for a sentence; None if nothing does."""
    if kind in I2_S and columns % I2_S[kind][0]:
        return f"rows of {columns}, not a multiple of its block of {I2_S[kind][0]}"
    if kind == I2_S_ROWS and rows % 4:
        return f"{rows} rows, not a multiple of 4"
    return None


def tiling_misfit(kind: str, rows: int, columns: int, tiling: Tiling) -> str | None:
    """What keeps a tiling from cutting a matrix of this shape, for a sentence; None if nothing does."""
    bm, bk, bmm = tiling
    if bmm not in ((32, 64) if kind == "tl1" else (32,)):
        return f"bmm = {bmm}, but {kind.upper()} has pieces of {'32 or 64' if kind == 'tl1' else '32'} rows"
    if bm < 1 or bm % bmm or rows % bm:
        return f"bm = {bm}, which has to be a multiple of bmm = {bmm} and to divide the {rows} rows"
    unit = 256 // bmm if kind == "tl1" else 24  # columns that the kernel takes at once
    if bk < 1 or bk % unit:
        return f"bk = {bk}, which has to be a multiple of {unit}"
    if kind == "tl1" and columns % bk:
        return f"bk = {bk}, which does not divide the {columns} columns"
    if kind == "tl2" and columns % bk % 32:
        return f"bk = {bk}, which leaves {columns % bk} of {columns} columns, not a multiple of 32"
    if kind == "tl2" and sum(_tl2_parts(rows, columns, bk)) > code_bytes(kind, rows, columns):
        return f"bk = {bk}, whose codes do not fit into the tensor's {code_bytes(kind, rows, columns)} bytes"
    return None


def unpack_i2_s(data: np.ndarray, rows: int, columns: int, kind: str) -> np.ndarray:
    """uint8 (M K / 4,) -> codes, uint8 (M, K). Raises ValueError for codes that are no trit."""
    if ((data & (data >> 1)) & 0x55).any():
        raise ValueError("values other than -1, 0 and 1")
    if kind == I2_S_ROWS:
        grouped = data.reshape(rows // 4, columns)
        return np.stack([(grouped >> shift) & 3 for shift in (6, 4, 2, 0)], axis=1).reshape(rows, columns)
    stride = I2_S[kind][1]
    blocks = data.reshape(-1, stride)
    return np.stack([(blocks >> shift) & 3 for shift in (6, 4, 2, 0)], axis=1).reshape(rows, columns)


def unpack_tl1(data: np.ndarray, rows: int, columns: int, tiling: Tiling) -> np.ndarray:
    """uint8 (M K / 4,) -> codes, uint8 (M, K). Raises ValueError for codes that are no pair of trits.

    A nibble is a pair of columns, 3 a + b of their codes. A byte has two neighbouring pairs of one row, the
    first in its upper nibble; 16 bytes have 16 rows.
    """
    bm, bk, bmm = tiling
    by = 256 // bmm
    pairs = _nibbles(data).reshape(rows // bm, columns // bk, bm // bmm, bk // by, bmm // 16, by // 4, 16, 2)
    return _split_pairs(pairs.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(rows, columns // 2))


def unpack_tl2(data: np.ndarray, rows: int, columns: int, tiling: Tiling) -> np.ndarray:
    """uint8 (code_bytes,) -> codes, uint8 (M, K). Raises ValueError for codes that are no trits.

    The columns that fill tiles of bk are triples: nibbles with the value |9 a + 3 b + c| of their trits, and
    behind all of them their signs. The columns that are left are pairs as in TL1, in tiles of 32. A byte has
    two neighbouring triples or pairs of one row, the first in its upper nibble; 32 bytes have 32 rows.
    """
    bm, bk, _ = tiling
    n_values, n_signs, n_pairs = _tl2_parts(rows, columns, bk)
    values, signs, pairs, _ = np.split(data, np.cumsum([n_values, n_signs, n_pairs]))
    codes = np.empty((rows, columns), np.uint8)
    wide = columns // bk * bk
    if wide:
        codes[:, :wide] = _split_triples(
            _rows_of_32(values, rows, wide // 3, bm, bk // 3), _signs(signs, rows, wide // 3, bm, bk // 3)
        )
    if wide < columns:
        codes[:, wide:] = _split_pairs(_rows_of_32(pairs, rows, (columns - wide) // 2, bm, 16))
    return codes


def _tl2_parts(rows: int, columns: int, bk: int) -> tuple[int, int, int]:
    """Bytes of the triples' values, of their signs, and of the pairs."""
    wide = columns // bk * bk
    return rows * wide // 6, rows * wide // 24, rows * (columns - wide) // 4


def _nibbles(data: np.ndarray) -> np.ndarray:
    """uint8 (..., 2): the upper and the lower nibble of each byte."""
    return np.stack([data >> 4, data & 15], axis=-1)


def _rows_of_32(data: np.ndarray, rows: int, groups: int, bm: int, tile: int) -> np.ndarray:
    """The nibbles of TL2 by row and group of columns, uint8 (M, groups); a tile is `tile` groups wide."""
    pieces = data.reshape(rows // bm, groups // tile, bm // 32, tile // 2, 4, 8)
    pieces = pieces[
        ..., [0, 2, 1, 3], :
    ]  # the kernel's unpack instructions take the halves of 16 bytes apart
    nibbles = _nibbles(pieces.reshape(*pieces.shape[:4], 32))
    return nibbles.transpose(0, 2, 4, 1, 3, 5).reshape(rows, groups)


def _signs(data: np.ndarray, rows: int, groups: int, bm: int, tile: int) -> np.ndarray:
    """The signs of TL2's triples, uint8 (M, groups), 1 for negative ones.

    32 bytes have 8 triples of 32 rows: the bits of 16 words of 16 bits, first the upper bit of each word.
    """
    words = data.view("<u2").reshape(rows // bm, groups // tile, bm // 32, tile // 8, 1, 16)
    bits = ((words >> np.arange(15, -1, -1, dtype=np.uint16)[:, None]) & 1).astype(np.uint8)
    bits = bits.reshape(*bits.shape[:4], 8, 32)
    return bits.transpose(0, 2, 5, 1, 3, 4).reshape(rows, groups)


def _split_pairs(pairs: np.ndarray) -> np.ndarray:
    """3 a + b, uint8 (M, K / 2) -> a and b, uint8 (M, K)."""
    if (pairs > 8).any():
        raise ValueError("a pair above 8")
    return np.stack([pairs // 3, pairs % 3], axis=-1).reshape(len(pairs), -1)


def _split_triples(values: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """|v| and the sign of v = 9 a + 3 b + c, a sum of trits, uint8 (M, K / 3) -> codes, uint8 (M, K)."""
    if (values > 13).any():
        raise ValueError("a triple above 13")
    if (negative > values).any():
        raise ValueError("a negative zero")  # never written: a sign is in the wrong place
    full = np.where(negative, 13 - values, 13 + values).astype(np.uint8)  # the same sum over the codes
    return np.stack([full // 9, full // 3 % 3, full % 3], axis=-1).reshape(len(values), -1)

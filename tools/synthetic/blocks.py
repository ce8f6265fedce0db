"""Random matrices in Q4_0, made as blocks: a float16 scale and 32 codes of 4 bits, which stand for code - 8.

Source of the layout: ggml-common.h (block_q4_0). Byte i of a block holds weight i in its lower half and
weight 16 + i in its upper half.
"""

from __future__ import annotations

import numpy as np

from edgellm.formats.types import dequantize

BLOCK = 32
_BLOCK_BYTES = 18
_CHUNK = 1 << 22  # weights that are decoded at once: 16 MiB as float32

# sixteen equally likely weights that are about normal; then two of them for each byte, as codes
_WEIGHTS = np.array([-7, -5, -4, -3, -2, -2, -1, 0, 0, 1, 2, 2, 3, 4, 5, 7])
_DEVIATION = float(np.sqrt(np.mean(_WEIGHTS**2)))
_BYTES = np.arange(256)
_DRAWN = ((_WEIGHTS[_BYTES & 15] + 8) | (_WEIGHTS[_BYTES >> 4] + 8) << 4).astype(np.uint8)
_SQUARES = (((_BYTES & 15) - 8) ** 2 + ((_BYTES >> 4) - 8) ** 2).astype(np.uint8)  # of a byte of codes
_ZEROS, _LOWEST = 0x88, 0x00  # bytes of two codes of weight 0, and of weight -8


def random_blocks(rng: np.random.Generator, rows: int, columns: int, deviation: float) -> np.ndarray:
    """uint8 (rows, columns / 32, 18): weights around 0, with one scale for the whole matrix."""
    blocks = np.empty((rows, columns // BLOCK, _BLOCK_BYTES), np.uint8)
    drawn = rng.integers(0, 1 << 64, rows * columns // 16, dtype=np.uint64).astype("<u8").view(np.uint8)
    blocks[:, :, 2:] = _DRAWN[drawn].reshape(rows, -1, 16)
    _scales(blocks)[...] = deviation / _DEVIATION
    return blocks


def clear(blocks: np.ndarray) -> None:
    """Make the weights of `blocks`, a view of a matrix, 0; the scales stay."""
    blocks[:, :, 2:] = _ZEROS


def fill_first(blocks: np.ndarray, weights: np.ndarray | float) -> None:
    """Make all 32 weights of each row's first block `weights`, (rows,), as nearly as float16 holds them."""
    blocks[:, 0, 2:] = _LOWEST
    _scales(blocks)[:, 0] = np.asarray(weights) / -8


def lengths(blocks: np.ndarray) -> np.ndarray:
    """Euclidean length of each row of weights without its first block, float64 (rows,)."""
    scales = _scales(blocks)[:, 1:].astype(np.float64)
    squares = _SQUARES[blocks[:, 1:, 2:]].sum(-1, dtype=np.int64)
    return np.sqrt((scales**2 * squares).sum(-1))


def times(x: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """x (T, columns) times the transposed matrix: float32 (T, rows)."""
    rows = len(blocks)
    y = np.empty((len(x), rows), np.float32)
    step = max(1, _CHUNK // x.shape[1])
    for first in range(0, rows, step):
        chunk = blocks[first : first + step]
        y[:, first : first + step] = x @ dequantize(chunk.reshape(len(chunk), -1), "Q4_0").T
    return y


def _scales(blocks: np.ndarray) -> np.ndarray:
    """A view of the scales, float16 (rows, blocks of a row)."""
    return blocks.view("<f2")[:, :, 0]

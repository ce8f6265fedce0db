"""Encoders of bitnet.cpp's ternary layouts, weight by weight: where each weight's bits go, as formulas.

Written from the fork's sources, without a look at edgellm's decoders: quantize_i2_s in
src/ggml-bitnet-mad.cpp; process_tl1, preprocess_three_weights_tl2 and preprocess_two_weights_tl2 in
utils/convert-hf-to-gguf-bitnet.py; write_ti_data_to_file in its gguf-py for the 32 bytes of the factor.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

NAME = "blk.0.attn_q.weight"
NUMBERS = {"i2_s-128": 36, "i2_s-64": 36, "i2_s-rows4": 36, "tl1": 38, "tl2": 39}
Tiling = tuple[int, int, int]  # bm, bk, bmm


def trits(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """int8 (rows, columns): -1, 0 and 1, equally often."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)


def encode(kind: str, weights: np.ndarray, scale: float, tiling: Tiling | None = None) -> bytes:
    """The bytes of a tensor: int8 (M, K) trits times `scale`."""
    if kind == "tl1":
        assert tiling
        codes = _tl1(weights, *tiling)
    elif kind == "tl2":
        assert tiling
        codes = _tl2(weights, *tiling)
        codes += bytes(-len(codes) % 32)
    else:
        codes = _i2_s(kind, weights)
    return codes + struct.pack("<f", scale) + bytes(28)


def _i2_s(kind: str, weights: np.ndarray) -> bytes:
    out = np.zeros(weights.size // 4, np.uint8)
    m, k = np.indices(weights.shape)
    if kind == "i2_s-rows4":
        byte, place = m // 4 * weights.shape[1] + k, m % 4
    else:
        block, stride = {"i2_s-128": (128, 32), "i2_s-64": (64, 16)}[kind]
        flat = m * weights.shape[1] + k
        byte, place = flat // block * stride + flat % stride, flat % block // stride
    np.bitwise_or.at(out, byte, (weights + 1).astype(np.uint8) << (6 - 2 * place).astype(np.uint8))
    return out.tobytes()


def _tl1(weights: np.ndarray, bm: int, bk: int, bmm: int) -> bytes:
    rows, columns = weights.shape
    by = 256 // bmm
    out = np.zeros(rows * columns // 4, np.uint8)
    pairs = (3 * weights[:, ::2] + weights[:, 1::2] + 4).astype(np.uint8)
    m, pair = np.indices(pairs.shape)
    k = 2 * pair
    at = m // bm
    for index, extent in (
        (k // bk, columns // bk),
        (m % bm // bmm, bm // bmm),
        (k % bk // by, bk // by),
        (m % bmm // 16, bmm // 16),
        (k % by // 4, by // 4),
        (m % 16, 16),
    ):
        at = at * extent + index
    np.bitwise_or.at(out, at, pairs << np.where(k % 4 < 2, 4, 0).astype(np.uint8))
    return out.tobytes()


def _nibbles_of_32_rows(values: np.ndarray, bm: int, groups: int) -> np.ndarray:
    """`groups` of the values' columns are as wide as a tile; two of them share a byte."""
    rows, columns = values.shape
    out = np.zeros(rows * columns // 2, np.uint8)
    m, group = np.indices(values.shape)
    at = m // bm
    lane = m % 32
    lane = np.where((lane >= 8) & (lane < 24), lane ^ 24, lane)  # the middle quarters change places
    for index, extent in (
        (group // groups, columns // groups),
        (m % bm // 32, bm // 32),
        (group % groups // 2, groups // 2),
        (lane, 32),
    ):
        at = at * extent + index
    np.bitwise_or.at(out, at, values << np.where(group % 2 == 0, 4, 0).astype(np.uint8))
    return out


def _tl2(weights: np.ndarray, bm: int, bk: int, bmm: int) -> bytes:
    rows, columns = weights.shape
    assert bmm == 32
    wide = columns - columns % bk
    three, two = weights[:, :wide], weights[:, wide:]
    sums = 9 * three[:, ::3] + 3 * three[:, 1::3] + three[:, 2::3]
    values = _nibbles_of_32_rows(np.abs(sums).astype(np.uint8), bm, bk // 3)
    signs = np.zeros(rows * wide // 3 // 16, np.uint16)
    m, group = np.indices(sums.shape)
    word = m // bm
    for index, extent in (
        (group // (bk // 3), wide // bk),
        (m % bm // 32, bm // 32),
        (group % (bk // 3) // 8, bk // 24),
        (m % 16, 16),
    ):
        word = word * extent + index
    bit = 15 - (2 * (group % 8) + m % 32 // 16)
    np.bitwise_or.at(signs, word, (sums < 0).astype(np.uint16) << bit.astype(np.uint16))
    pairs = (3 * two[:, ::2] + two[:, 1::2] + 4).astype(np.uint8)
    out = values.tobytes() + signs.astype("<u2").tobytes() + _nibbles_of_32_rows(pairs, bm, 16).tobytes()
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    assert len(out) <= size
    return out + bytes(size - len(out))


def write_config(path: Path, tilings: dict[tuple[int, int], Tiling]) -> Path:
    """A kernel_config.ini as codegen_tl1.py writes it."""
    sections = (
        f"[Kernels_{i}]\nm = {m}\nk = {k}\nbm = {bm}\nbk = {bk}\nbmm = {bmm}\n\n"
        for i, ((m, k), (bm, bk, bmm)) in enumerate(tilings.items())
    )
    path.write_text("".join(sections))
    return path

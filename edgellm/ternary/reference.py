"""Ternary matmul by table lookup, as TeLLMe does it (arXiv:2510.15926), in NumPy: the specification.

Of every group of G activations a table of all its 3^G signed sums is built; a group of G weights is then one
lookup, and a row of weights K / G lookups and additions. Integers only, so every order of adding is exact.
"""

from __future__ import annotations

import numpy as np

from edgellm.ternary.encode import full_codes, group_values, half_codes, tables

MOST_INPUTS = (2**31 - 1) // 128  # that int32 sums of int8 products hold
_LOOKUPS_AT_ONCE = 1 << 22


def group_tables(x: np.ndarray, g: int) -> np.ndarray:
    """int8 activations (tokens, k) -> int32 (tokens, ceil(k / g), 3^g): of each group all sums of its
    activations times -1, 0 or 1, in the order of the full code."""
    tokens, k = x.shape
    if k > MOST_INPUTS:
        raise ValueError(f"sums of {k} products of int8 do not fit int32")
    groups = -(-k // g)
    padded = np.zeros((tokens, groups * g), np.int32)
    padded[:, :k] = x
    return padded.reshape(tokens, groups, g) @ tables(g).T.astype(np.int32)


def lookup_matmul(x: np.ndarray, codes: np.ndarray, g: int) -> np.ndarray:
    """int8 x (tokens, k), full codes (n, ceil(k / g)) -> int32 (tokens, n): x times the trits, exactly."""
    sums = group_tables(x, g)
    tokens, groups, _ = sums.shape
    _check_codes(codes, groups)
    out = np.zeros((tokens, len(codes)), np.int32)
    step = max(1, _LOOKUPS_AT_ONCE // max(1, tokens * groups))
    for row in range(0, len(codes), step):
        part = codes[row : row + step].astype(np.int64)
        found = sums[:, np.arange(groups), part]  # (tokens, rows, groups)
        out[:, row : row + step] = found.sum(-1, dtype=np.int32)
    return out


def half_lookup_matmul(x: np.ndarray, codes: np.ndarray, negative: np.ndarray, g: int) -> np.ndarray:
    """The same from half codes: tables of (3^g + 1) / 2 sums, of which a sign bit takes the negative."""
    sums = group_tables(x, g)[:, :, (3**g - 1) // 2 :]
    tokens, groups, _ = sums.shape
    _check_codes(codes, groups)
    out = np.zeros((tokens, len(codes)), np.int32)
    for row in range(len(codes)):
        found = sums[:, np.arange(groups), codes[row].astype(np.int64)]
        out[:, row] = np.where(negative[row], -found, found).sum(-1, dtype=np.int32)
    return out


def matmul(x: np.ndarray, trits: np.ndarray, g: int = 3, *, half: bool = False) -> np.ndarray:
    """int8 x (tokens, k) times int8 trits (n, k) transposed -> int32 (tokens, n), in groups of g."""
    values = group_values(trits, g)
    if half:
        return half_lookup_matmul(x, *half_codes(values), g)
    return lookup_matmul(x, full_codes(values, g), g)


def _check_codes(codes: np.ndarray, groups: int) -> None:
    if codes.shape[1:] != (groups,):
        raise ValueError(f"the activations are {groups} groups, the rows of weights {codes.shape[1:]}")

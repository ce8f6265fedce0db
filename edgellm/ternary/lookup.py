"""Ternary matmul by table lookup in plain Numba: what the specification says, loop by loop."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numba
import numpy as np

from edgellm.ternary.encode import tables
from edgellm.ternary.reference import MOST_INPUTS


def lookup_matmul(x: np.ndarray, codes: np.ndarray, g: int) -> np.ndarray:
    """int8 x (tokens, k), full codes (n, ceil(k / g)) -> int32 (tokens, n), as reference.lookup_matmul."""
    tokens, k = x.shape
    groups = -(-k // g)
    if codes.shape[1:] != (groups,):
        raise ValueError(f"the activations are {groups} groups, the rows of weights {codes.shape[1:]}")
    if k > MOST_INPUTS:
        raise ValueError(f"sums of {k} products of int8 do not fit int32")
    if codes.size and int(codes.max()) >= 3**g:
        raise ValueError(f"a code of {g} trits is below {3**g}")
    out = np.zeros((tokens, len(codes)), np.int32)
    _lookup(x, np.ascontiguousarray(codes), tables(g), out)
    return out


@numba.njit(cache=False)
def _lookup(x, codes, every, out):
    entries, g = every.shape
    n, groups = codes.shape
    k = x.shape[1]
    sums = np.zeros((groups, entries), np.int32)
    for t in range(x.shape[0]):
        for j in range(groups):
            for code in range(entries):
                total = np.int32(0)
                for i in range(min(g, k - j * g)):
                    total += np.int32(every[code, i]) * np.int32(x[t, j * g + i])
                sums[j, code] = total
        for row in range(n):
            total = np.int32(0)
            for j in range(groups):
                total += sums[j, codes[row, j]]
            out[t, row] = total

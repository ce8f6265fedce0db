"""Every tile is computed once, whoever is fast or slow."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from edgellm.kernels import sharing
from edgellm.kernels.memory import address, aligned

BIG = 1 << 30  # bytes: worth sharing on demand


# Helpers of kernels cannot be called from Python.
@numba.njit
def fixed_tiles(tiles: int, nbytes: int, threads: int) -> int:
    return sharing.fixed_tiles(tiles, nbytes, threads)


@numba.njit
def chunk_tiles(tiles: int, fixed: int, threads: int) -> int:
    return sharing.chunk_tiles(tiles, fixed, threads)


@numba.njit
def next_tiles(counter: int, tiles: int, fixed: int, threads: int) -> int:
    return sharing.next_tiles(counter, tiles, fixed, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tiles", [1, 5, 36, 96, 353, 3072])
def test_each_call_hands_out_every_tile_once(tiles: int, threads: int) -> None:
    counter = aligned(8, np.int64)
    rng = np.random.default_rng(tiles)
    for _ in range(3):  # the counter goes on from call to call
        done = np.zeros(tiles, int)
        fixed = fixed_tiles(tiles, BIG, threads)
        done[:fixed] += 1
        asking = list(range(threads))
        while asking:
            thread = asking[rng.integers(len(asking))]
            first = next_tiles(address(counter), tiles, fixed, threads)
            if first == tiles:
                asking.remove(thread)
            done[first : first + chunk_tiles(tiles, fixed, threads)] += 1
        np.testing.assert_array_equal(done, 1)


def test_little_work_is_not_worth_asking_for() -> None:
    assert fixed_tiles(96, 500 << 10, 2) == 96
    assert fixed_tiles(96, 500 << 12, 2) < 96
    assert fixed_tiles(96, BIG, 1) == 96

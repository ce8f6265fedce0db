"""Who stays in memory: those that fire most, whoever came last."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.flash.favourites import Favourites

SLOTS, CAPACITY = 300, 75


def run(keeper: Favourites, tokens: list[np.ndarray]) -> list[float]:
    """Share of the slots that each token missed."""
    missed = []
    for needed in tokens:
        missing = keeper.missing(needed)
        keeper.score[needed] += keeper.step
        keeper.advance()
        if keeper.settles(0):
            before = set(keeper.pointer[: keeper.num_used])
            slots, rows = keeper.welcome(missing, needed)
            assert set(slots) <= set(missing)
            assert (keeper.pointer[rows] == slots).all()
            assert (keeper.row_of[slots] == rows).all()
            assert not (before - set(keeper.pointer)) & set(needed)  # nobody in use had to go
        missed.append(len(missing) / max(1, len(needed)))
        held = keeper.pointer[: keeper.num_used]
        assert len(set(held)) == len(held)
        assert (keeper.row_of[held] == np.arange(len(held))).all()
        assert (keeper.row_of >= 0).sum() == len(held)
    return missed


def tokens(count: int, frequency: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.flatnonzero(rng.random(len(frequency)) < frequency) for _ in range(count)]


@pytest.mark.parametrize("known", [True, False])
def test_it_comes_near_the_best_that_is_possible(known: bool) -> None:
    """For independent tokens nothing is better than to keep those that fire most often."""
    frequency = np.random.default_rng(1).permutation(np.minimum(0.9, 8 / np.arange(1, SLOTS + 1)))
    keeper = Favourites(SLOTS, CAPACITY, frequency if known else None)
    if known:  # packed hot first, and the text is another one
        keeper.preload(CAPACITY)
    found = float(np.mean(run(keeper, tokens(1500, frequency))[500:]))
    best = np.sort(frequency)[: SLOTS - CAPACITY].sum() / frequency.sum()
    assert best <= found * 1.02
    assert found < 1.15 * best


def test_preload_and_forget() -> None:
    keeper = Favourites(10, 4, np.linspace(1, 0, 10))
    assert list(keeper.preload(9)) == [0, 1, 2, 3]
    assert list(keeper.missing(np.array([2, 8]))) == [8]
    keeper.forget()
    assert list(keeper.missing(np.array([2, 8]))) == [2, 8]
    slots, rows = keeper.welcome(np.array([2, 8]), np.array([2, 8]))
    assert list(slots) == [2, 8]
    assert list(rows) == [0, 1]


def test_no_room_at_all() -> None:
    keeper = Favourites(10, 0)
    keeper.score[1] += keeper.step
    keeper.advance()
    assert not len(keeper.welcome(np.array([1]), np.array([1]))[0])
    assert list(keeper.missing(np.array([1]))) == [1]

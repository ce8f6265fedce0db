"""The bookkeeping of what is in memory, against a plain simulation."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.flash.plan import LONGEST_WINDOW, expected_misses, widest_window
from edgellm.flash.window import Window

SLOTS, CAPACITY = 200, 60


def tokens(count: int, most: int) -> list[np.ndarray]:
    """What each of `count` tokens needs: some slots often, most seldom."""
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, SLOTS + 1)
    return [
        np.sort(rng.choice(SLOTS, rng.integers(0, most), replace=False, p=p / p.sum())) for _ in range(count)
    ]


@pytest.mark.parametrize("last", [None, 1, 3])
def test_rows_hold_what_the_bookkeeping_says(last: int | None) -> None:
    window, rows = Window(SLOTS, CAPACITY, last), np.full(CAPACITY, -1)
    history = []
    for needed in tokens(300, 18 if last else 40):
        history.append(needed)
        before = {int(slot) for slot in window.pointer[: window.num_used]}
        change = window.advance(needed)
        assert set(change.slots) == set(needed) - before
        for source, target in change.moves:
            rows[target] = rows[source]
        rows[change.rows] = change.slots[: len(change.rows)]
        used = window.num_used
        assert (rows[:used] == window.pointer[:used]).all()
        assert (window.pointer[:used] >= 0).all()
        assert (window.pointer[used:] == -1).all()
        assert (rows[window.row_of[needed]] == needed).all()
        if last is not None:  # a dense prefix of what the last tokens needed
            assert set(window.pointer[:used]) == set(np.concatenate(history[-last:]))


def test_without_a_window_the_longest_idle_goes_first() -> None:
    window = Window(10, 3)
    for slots in ([0, 1, 2], [1], [2, 3]):
        window.advance(np.array(slots))
    assert set(window.pointer) == {1, 2, 3}
    assert window.row_of[0] == -1
    assert len(window.missing(np.array([0, 1]))) == 1


def test_what_finds_no_room_is_not_given_any() -> None:
    window = Window(10, 3)
    window.advance(np.array([0, 1]))
    change = window.advance(np.array([1, 2, 3, 4, 5]))
    assert list(change.slots) == [2, 3, 4, 5]
    assert len(change.rows) == 2  # the row of 1 is needed by this token
    assert set(window.pointer) == {1, 2, 3}


def test_preload_takes_the_first_ones() -> None:
    window = Window(10, 4)
    assert list(window.preload(8)) == [0, 1, 2, 3]
    assert list(window.advance(np.array([2, 9])).slots) == [9]
    window.forget()
    assert list(window.missing(np.array([2, 9]))) == [2, 9]


def test_expected_misses_are_those_of_a_simulation() -> None:
    rng = np.random.default_rng(1)
    p = np.minimum(1, 3 / np.arange(1, SLOTS + 1))
    window, missed = Window(SLOTS, CAPACITY), []
    for _ in range(3000):
        missed.append(len(window.advance(np.flatnonzero(rng.random(SLOTS) < p)).slots))
    assert expected_misses(p, CAPACITY) == pytest.approx(np.mean(missed[500:]), rel=0.03)
    assert expected_misses(p, SLOTS) == 0


@pytest.mark.parametrize(("capacity", "tokens"), [(87, 2), (88, 3), (93, 3), (94, 4), (1, 1)])
def test_the_widest_window_that_fits(capacity: int, tokens: int) -> None:
    """Of 100 slots with a chance of 1/2 four tokens need 93.75 together, three 87.5, two 75."""
    assert widest_window(np.full((2, 100), 0.5), capacity) == tokens


def test_the_layer_that_needs_most_decides() -> None:
    assert widest_window(np.array([[0.0] * 100, [0.5] * 100]), 93) == 3
    assert widest_window(np.zeros((2, 100)), 1) == LONGEST_WINDOW

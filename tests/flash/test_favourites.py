"""Who stays in memory: those that fire most, whoever came last."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.flash.favourites import EVERY, HYSTERESIS, WEAKEST, Favourites
from edgellm.flash.lists import Lists, tell
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import NeuronKeep
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import host_target
from edgellm.kernels.team import call_kernel

SLOTS, CAPACITY, ROW, OWN = 300, 75, 8, 60  # the other rows are lent


def run(keeper: Favourites, tokens: list[np.ndarray]) -> list[float]:
    """Share of the slots that each token missed, with the kernel that takes in newcomers."""
    kernel = load_kernels(["neuron_keep"], host_target())["neuron_keep"]
    lists, mask = Lists(1, SLOTS), aligned(SLOTS, np.uint8)
    arena, content = np.zeros(max(1, keeper.capacity), np.int64), np.arange(SLOTS)
    row_of, pointer, score = keeper.row_of[0], keeper.pointer[0], keeper.score[0]
    arena[: keeper.used[0]] = pointer[: keeper.used[0]]
    arena, lent = arena[:OWN].copy(), arena[OWN:].copy()
    lists.set(
        NeuronKeep, lists.keep[0], WEAKEST=address(keeper.weakest), SCORES=address(score), MASK=address(mask),
        ROW_OF=address(row_of), POINTER=address(pointer), NUM_USED=address(keeper.used), PER_SLOT=1,
        ROW_BYTES=ROW, CAPACITY=keeper.capacity, ARENA=address(arena), OWN=OWN, LENT=address(lent),
        HYSTERESIS=HYSTERESIS,
    )  # fmt: skip
    missed = []
    for needed in tokens:
        keeper.advance()
        missing = needed[row_of[needed] < 0]
        score[needed] += keeper.step
        mask[:] = 0
        mask[needed] = 1
        before = set(pointer[: keeper.used[0]])
        hopeful = missing[score[missing] > keeper.bars[0]]
        tell(lists.hopeful, hopeful, address(content) + ROW * hopeful)
        call_kernel(kernel, address(lists.keep[0]))
        held = pointer[: keeper.used[0]]
        assert set(held) - before <= set(missing)
        assert not (before - set(held)) & set(needed)  # nobody in use had to go
        missed.append(len(missing) / max(1, len(needed)))
        assert len(set(held)) == len(held)
        assert (row_of[held] == np.arange(len(held))).all()
        assert (row_of >= 0).sum() == len(held)
        assert (np.append(arena, lent)[: len(held)] == held).all()
    return missed


def tokens(count: int, frequency: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.flatnonzero(rng.random(len(frequency)) < frequency) for _ in range(count)]


@pytest.mark.parametrize("known", [True, False])
def test_it_comes_near_the_best_that_is_possible(known: bool) -> None:
    """For independent tokens nothing is better than to keep those that fire most often."""
    frequency = np.random.default_rng(1).permutation(np.minimum(0.9, 8 / np.arange(1, SLOTS + 1)))
    keeper = Favourites(1, SLOTS, CAPACITY, frequency[None] if known else None)
    if known:  # packed hot first, and the text is another one
        assert (keeper.preload(0) == np.arange(CAPACITY)).all()
    found = float(np.mean(run(keeper, tokens(1500, frequency))[500:]))
    best = np.sort(frequency)[: SLOTS - CAPACITY].sum() / frequency.sum()
    assert best <= found * 1.02
    assert found < 1.15 * best


def test_layers_take_turns_in_looking_for_the_least_popular() -> None:
    keeper = Favourites(3, 10, 4, np.linspace(1, 0, 10))
    for layer in range(3):
        keeper.preload(layer)
    assert np.isinf(keeper.bars).all()
    seen = []
    for _ in range(4):
        keeper.weakest[:, 0] = 0
        keeper.advance()
        seen.append(keeper.weakest[:, 0].tolist())
    assert np.sum(seen, axis=0).tolist() == [4, 4, 4]  # each once, all of its rows
    assert keeper.weakest[:, 2:6].tolist() == [[3, 2, 1, 0]] * 3
    assert (keeper.bars == keeper.score[0, 3] * HYSTERESIS).all()
    assert WEAKEST >= 4


@pytest.mark.parametrize("capacity", [0, 4, 10])
def test_nobody_comes_where_there_is_no_room_or_all_are_there(capacity: int) -> None:
    keeper = Favourites(2, 10, capacity, fixed=capacity == 4)
    for layer in range(2):
        keeper.preload(layer)
    for _ in range(8):
        keeper.advance()
    assert np.isinf(keeper.bars).all()


def test_what_was_lent_is_taken_back_and_filled_anew() -> None:
    frequency = np.minimum(0.9, 8 / np.arange(1, SLOTS + 1))
    keeper = Favourites(2, SLOTS, CAPACITY, np.stack([frequency] * 2), lent=CAPACITY - OWN)
    for layer in range(2):
        keeper.preload(layer)
    run(keeper, tokens(30, frequency))
    kept = keeper.pointer[:, :OWN].copy()
    keeper.vacate(OWN, but=1)
    assert keeper.used.tolist() == [OWN, CAPACITY]
    keeper.vacate(OWN)
    assert keeper.used.tolist() == [OWN, OWN]
    assert (keeper.pointer[:, :OWN] == kept).all()
    assert (keeper.pointer[:, OWN:] == -1).all()
    for layer in range(2):
        assert (keeper.row_of[layer, kept[layer]] == np.arange(OWN)).all()
        assert (keeper.row_of[layer] >= 0).sum() == OWN
    again = run(keeper, tokens(200, frequency))  # checks every token
    assert keeper.used[0] == CAPACITY
    assert np.mean(again[100:]) < np.mean(again[:2])


def test_rows_that_were_lent_come_back_even_where_all_have_one() -> None:
    keeper = Favourites(1, 10, 10, lent=3)
    keeper.preload(0)
    keeper.vacate(7)
    for _ in range(EVERY):
        keeper.advance()
    assert keeper.bars[0] < 0  # whoever is missing may stay


def test_scores_do_not_overflow() -> None:
    keeper = Favourites(1, SLOTS, CAPACITY)
    many = [np.array([5, 9])] * 20000
    run(keeper, many)
    assert keeper.step < 1e13
    assert np.isfinite(keeper.score).all()

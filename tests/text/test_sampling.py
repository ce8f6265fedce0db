"""Sampling against hand-computed distributions, a naive implementation, and its own statistics."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.text.sampling import Sampler, SamplingParams

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def naive(logits: np.ndarray, p: SamplingParams, seen: list[int]) -> dict[int, float]:
    """Probability of each token that may be drawn, in plain Python from llama.cpp's description."""
    x = {i: float(v) for i, v in enumerate(logits)}
    for id, bias in p.logit_bias.items():
        x[id] += bias
    window = seen if p.penalty_window < 0 else seen[max(0, len(seen) - p.penalty_window) :]
    for id, count in Counter(window).items():
        x[id] = x[id] * p.repetition_penalty if x[id] <= 0 else x[id] / p.repetition_penalty
        x[id] -= count * p.frequency_penalty + p.presence_penalty
    order = sorted(x, key=lambda i: (-x[i], i))
    if p.temperature == 0:
        return {order[0]: 1.0}
    if p.top_k:
        order = order[: p.top_k]
    top = x[order[0]]
    weights = [math.exp(x[i] - top) for i in order]
    total, reached, keep = sum(weights), 0.0, len(order)
    for n, weight in enumerate(weights):
        reached += weight
        if p.top_p < 1 and reached >= p.top_p * total:
            keep = n + 1
            break
    order = [i for i in order[:keep] if x[i] >= top + (math.log(p.min_p) if p.min_p else -math.inf)]
    weights = [math.exp((x[i] - top) / p.temperature) for i in order]
    return {i: w / sum(weights) for i, w in zip(order, weights, strict=True) if w}


def draws(params: SamplingParams, logits: np.ndarray, count: int, seen: tuple[int, ...] = ()) -> Counter[int]:
    sampler = Sampler(params, logits.size)
    for token in seen:
        sampler.accept(token)
    return Counter(sampler.sample(logits) for _ in range(count))


def fits(found: Counter[int], expected: dict[int, float]) -> bool:
    """Chi-square at a level of about one in a million (Wilson and Hilferty's approximation)."""
    n = found.total()
    assert found.keys() <= expected.keys()
    square = sum((found[i] - n * p) ** 2 / (n * p) for i, p in expected.items())
    k = len(expected) - 1
    if k == 0:
        return found.total() == found[next(iter(expected))]
    return square < k * (1 - 2 / (9 * k) + 4.75 * math.sqrt(2 / (9 * k))) ** 3


# ---- by hand: probabilities 0.4 0.3 0.2 0.1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}),
        ({"top_k": 2}, {0: 4 / 7, 1: 3 / 7}),
        ({"top_k": 1}, {0: 1.0}),
        ({"top_p": 0.65}, {0: 4 / 7, 1: 3 / 7}),
        ({"top_p": 0.75}, {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}),
        ({"top_p": 0.0}, {0: 1.0}),
        ({"top_k": 2, "top_p": 0.5}, {0: 1.0}),  # 4/7 of the two that top-k left is enough
        ({"min_p": 0.45}, {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}),
        ({"min_p": 1.0}, {0: 1.0}),
        ({"temperature": 0.5}, {0: 16 / 30, 1: 9 / 30, 2: 4 / 30, 3: 1 / 30}),
        ({"temperature": 0.5, "top_p": 0.65}, {0: 16 / 25, 1: 9 / 25}),  # temperature comes last
        ({"logit_bias": {0: -math.inf}}, {1: 3 / 6, 2: 2 / 6, 3: 1 / 6}),
        ({"logit_bias": {3: math.log(4)}}, {0: 4 / 13, 1: 3 / 13, 2: 2 / 13, 3: 4 / 13}),
        ({"presence_penalty": math.log(2)}, {0: 4 / 16, 1: 6 / 16, 2: 4 / 16, 3: 2 / 16}),  # 0 was seen
        ({"frequency_penalty": math.log(2)}, {0: 1 / 7, 1: 3 / 7, 2: 2 / 7, 3: 1 / 7}),  # twice
        ({"repetition_penalty": 2.0}, {0: 16 / 76, 1: 30 / 76, 2: 20 / 76, 3: 10 / 76}),  # log 0.4 < 0
    ],
)
def test_distribution_by_hand(changes: dict[str, Any], expected: dict[int, float]) -> None:
    params = SamplingParams(**{**PLAIN, "seed": 7, **changes})
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert naive(logits, params, [0, 0]) == pytest.approx(expected, rel=1e-5)
    assert fits(draws(params, logits, 20000, seen=(0, 0)), expected)


def test_the_chi_square_rejects_a_wrong_distribution() -> None:
    found = draws(SamplingParams(**PLAIN, seed=1), logits_of(0.4, 0.3, 0.2, 0.1), 20000)
    assert not fits(found, {0: 0.37, 1: 0.33, 2: 0.2, 3: 0.1})


# ---- against the naive implementation

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 60),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.31]),
    penalty_window=st.integers(-1, 4),
    logit_bias=st.dictionaries(st.integers(0, 49), st.sampled_from([-math.inf, -2.0, 3.0]), max_size=3),
)


class EveryDraw:
    """Stands in for the generator: hands out chosen numbers between 0 and 1."""

    def __init__(self, value: float):
        self.value = value

    def random(self) -> float:
        return self.value


@given(params, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 49), max_size=8))
@settings(max_examples=200, deadline=None)
def test_same_tokens_and_probabilities_as_the_naive_sampler(
    params: SamplingParams, seed: int, seen: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal(50)).astype(np.float32)
    logits[rng.integers(0, 50, 10)] = logits[0]  # equals
    sampler = Sampler(params, 50)
    for token in seen:
        sampler.accept(token)
    expected = naive(logits, params, seen)
    # a grid of draws hits each token in proportion to its probability
    grid = 300
    found: Counter[int] = Counter()
    for step in range(grid):
        sampler._rng = EveryDraw((step + 0.5) / grid)  # type: ignore[assignment]
        found[sampler.sample(logits)] += 1
        if params.temperature == 0:
            break
    total = found.total()
    assert found.keys() <= expected.keys()
    for token, probability in expected.items():
        assert found[token] / total == pytest.approx(probability, abs=1.5 / total + 1e-6)


@pytest.mark.parametrize("changes", [{}, {"top_k": 40}, {"top_p": 0.9}, {"top_p": 0.9999}, {"min_p": 0.01}])
def test_candidates_of_a_large_vocabulary(changes: dict[str, Any]) -> None:
    logits = (4 * np.random.default_rng(3).standard_normal(20000)).astype(np.float32)
    logits[100:3000] = logits[100]
    params = SamplingParams(**{**PLAIN, **changes})
    expected = naive(logits, params, [])
    ids, values = Sampler(params, logits.size)._candidates(logits, float(logits.max()))
    assert sorted(ids.tolist()) == sorted(expected)
    np.testing.assert_array_equal(values, logits[ids])


# ---- greedy, seeds, the window


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = np.array([1, 5, 5, -3], np.float32)
    assert Sampler(SamplingParams(temperature=0), 4).sample(logits) == 1


def test_logits_stay_as_they_are() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    before = logits.copy()
    draws(SamplingParams(seed=1, repetition_penalty=1.5, logit_bias={1: 2.0}), logits, 5, seen=(0, 1))
    np.testing.assert_array_equal(logits, before)


def test_a_seed_repeats_its_draws() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def sequence(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed), logits.size)
        return [sampler.sample(logits) for _ in range(20)]

    assert sequence(5) == sequence(5)
    assert sequence(5) != sequence(6)
    assert sequence(None) != sequence(None)


def test_tokens_leave_the_penalty_window() -> None:
    params = SamplingParams(temperature=0, presence_penalty=1.0, penalty_window=2)
    sampler = Sampler(params, 3)
    logits = np.array([1.0, 0.9, 0.5], np.float32)
    for token, expected in [(0, 1), (1, 2), (2, 0), (0, 1)]:
        sampler.accept(token)
        assert sampler.sample(logits) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(EdgeError, match="largest logit is"):
        Sampler(SamplingParams(), 3).sample(np.array([0, bad, 1], np.float32))


def test_forbidding_every_token_is_refused() -> None:
    sampler = Sampler(SamplingParams(logit_bias={0: -math.inf, 1: -math.inf}), 2)
    with pytest.raises(EdgeError, match="largest logit is -inf"):
        sampler.sample(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 for greedy or a positive number, not -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be .* not hot"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"top_p": 1.01}, "top_p must be between 0 and 1, not 1.01"),
        ({"min_p": -1}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"presence_penalty": math.nan}, "presence_penalty must be"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty must be"),
        ({"penalty_window": -2}, "penalty_window must be"),
        ({"seed": -1}, "seed must be"),
        ({"logit_bias": {-1: 0.0}}, "token id in logit_bias must be"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 must be"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 must be"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        SamplingParams(**changes)


def test_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(EdgeError, match="names token 9, but the vocabulary has 4 tokens"):
        Sampler(SamplingParams(logit_bias={9: 1.0}), 4)

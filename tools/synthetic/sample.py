"""The tokens that a synthetic model is made and measured with."""

from __future__ import annotations

import numpy as np

SETTING = 256  # tokens at the start that set the biases' scale
MEASURED = 512  # those behind them, of which the figures are
FRESH = 2048  # those that somebody else may run
_FIRST = 300  # smaller ids are bytes and rare
_OFFSET = 2.7  # Mandelbrot's, in 1 / (rank + offset): the commonest token is one of 30


def sample_tokens(vocab: int, seed: int) -> np.ndarray:
    """SETTING + MEASURED token ids, int64, each drawn for itself by Zipf's law from a shuffled vocabulary."""
    rng = np.random.default_rng([seed, 3])
    ranks = _ranks(rng, vocab, SETTING + MEASURED)
    return _FIRST + rng.permutation(vocab - _FIRST)[ranks]


def fresh_tokens(vocab: int, seed: int) -> np.ndarray:
    """FRESH others, by the same law from the same vocabulary."""
    rng = np.random.default_rng([seed, 3])
    _ranks(rng, vocab, SETTING + MEASURED)
    return _FIRST + rng.permutation(vocab - _FIRST)[_ranks(rng, vocab, FRESH)]


def _ranks(rng: np.random.Generator, vocab: int, count: int) -> np.ndarray:
    share = 1 / (np.arange(1, vocab - _FIRST + 1) + _OFFSET)
    return rng.choice(vocab - _FIRST, count, p=share / share.sum())

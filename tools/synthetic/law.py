"""How often each neuron of a layer fires: a power law, which has few hot neurons and a long cold tail."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

PEAK = 0.95  # share of the tokens for which the hottest neuron fires
# With a mean of 10 %, this makes 80 % of the activations come from 23 % of the neurons, and 22 % where
# successive tokens resemble each other (measured with llama-1.1b and llama-2-7b).
DECAY = 3.5
LEAST, MOST = 0.01, 0.5  # mean that can be asked for
_NORMAL = NormalDist()


def firing_rates(neurons: int, mean: float) -> np.ndarray:
    """Share of the tokens for which each neuron fires, float64 (neurons,), from the hottest on.

    The neuron at rank u of 0 <= u < 1 fires at the rate PEAK (1 + u / u0)^-DECAY, where u0 gives the mean.
    Raises ValueError for a mean outside of LEAST to MOST.
    """
    if not LEAST <= mean <= MOST:
        raise ValueError(f"a mean of {mean} is not between {LEAST} and {MOST}")
    rank = (np.arange(neurons) + 0.5) / neurons
    low, high = 1e-4, 1e4  # of u0, whose logarithm is halved
    for _ in range(60):
        middle = (low * high) ** 0.5
        rates = PEAK * (1 + rank / middle) ** -DECAY
        low, high = (middle, high) if rates.mean() < mean else (low, middle)
    return rates


def thresholds(rates: np.ndarray) -> np.ndarray:
    """What a standard normal variable exceeds at these rates, float64 like them."""
    return np.array([-_NORMAL.inv_cdf(rate) for rate in rates.tolist()])


def mean_square(thresholds: np.ndarray) -> float:
    """Mean over the neurons of E[relu(g - threshold)^2], g standard normal."""
    above = np.array([_NORMAL.cdf(-z) for z in thresholds.tolist()])
    density = np.array([_NORMAL.pdf(z) for z in thresholds.tolist()])
    return float(np.mean((1 + thresholds**2) * above - thresholds * density))

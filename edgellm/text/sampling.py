"""From logits to the next token: bias, penalties, top-k, top-p, min-p, temperature, in llama.cpp's order.

Source of each step: llama.cpp src/llama-sampler.cpp and the default chain of common/common.h.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm.errors import EdgeError

_FIRST_GUESS = 256  # tokens sorted at first for top-p; most distributions need fewer


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a token. The defaults are llama.cpp's. Raises EdgeError on values without meaning.

    temperature: 0 takes the most likely token. top_k: keep the k most likely, 0 keeps all. top_p: keep the
    fewest tokens whose probabilities reach p (Holtzman et al. 2020), 1 keeps all. min_p: keep tokens at
    least min_p times as likely as the best (Nguyen et al. 2024), 0 keeps all. repetition_penalty divides
    positive and multiplies negative logits of seen tokens (Keskar et al. 2019), 1 does nothing.
    presence_penalty is subtracted once and frequency_penalty per occurrence. penalty_window: how many of
    the last tokens count as seen, -1 for all. seed: None draws one from the system. logit_bias: added to
    the logits of the given ids, -inf forbids a token.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.temperature, "temperature", 0.0, math.inf, "0 for greedy or a positive number")
        _require(self.top_p, "top_p", 0.0, 1.0, "between 0 and 1")
        _require(self.min_p, "min_p", 0.0, 1.0, "between 0 and 1")
        _require(self.repetition_penalty, "repetition_penalty", 1e-6, 1e6, "positive, 1 for none")
        _require(self.presence_penalty, "presence_penalty", -math.inf, math.inf, "a finite number")
        _require(self.frequency_penalty, "frequency_penalty", -math.inf, math.inf, "a finite number")
        _require_int(self.top_k, "top_k", 0, "0 for all tokens or a positive whole number")
        _require_int(self.penalty_window, "penalty_window", -1, "-1 for all tokens or a whole number")
        if self.seed is not None:
            _require_int(self.seed, "seed", 0, "a whole number, not negative")
        for id, bias in self.logit_bias.items():
            _require_int(id, "a token id in logit_bias", 0, "a whole number, not negative")
            if bias != -math.inf:
                _require(bias, f"logit_bias of token {id}", -math.inf, math.inf, "a finite number or -inf")

    @property
    def penalizes(self) -> bool:
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.penalty_window != 0 and penalties != (1.0, 0.0, 0.0)


class Sampler:
    """Draws tokens of one sequence. Same parameters, seed, logits and accepted tokens: same draws."""

    def __init__(self, params: SamplingParams, vocab_size: int):
        last = max(params.logit_bias, default=0)
        if last >= vocab_size:
            raise EdgeError(f"logit_bias names token {last}, but the vocabulary has {vocab_size} tokens.")
        self.params = params
        self.vocab_size = vocab_size
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        self._bias_ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self._seen: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def accept(self, token: int) -> None:
        """Count a token as seen, for the penalties. Give it the prompt's tokens too, as llama.cpp does."""
        if not self.params.penalizes:
            return
        self._seen.append(token)
        self._counts[token] += 1
        if 0 <= self.params.penalty_window < len(self._seen):
            old = self._seen.popleft()
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]

    def sample(self, logits: np.ndarray) -> int:
        """The next token. logits: float32 (vocab_size,), left as it is.

        Raises EdgeError when no token can be chosen: a NaN, or every logit -inf.
        """
        if logits.shape != (self.vocab_size,):
            raise ValueError(f"logits have shape {logits.shape}, expected ({self.vocab_size},)")
        x = self._adjust(logits)
        best = int(x.argmax())  # the first of equals, so the lowest id; a NaN if there is one
        top = float(x[best])
        if not math.isfinite(top):
            raise EdgeError(f"The largest logit is {top}; the model file or the logit_bias is unusable.")
        if self.params.temperature == 0 or self.params.top_k == 1:
            return best
        ids, values = self._candidates(x, top)
        weights = np.exp((values.astype(np.float64) - top) / self.params.temperature)
        edges = np.cumsum(weights)
        at = np.searchsorted(edges, self._rng.random() * edges[-1], side="right")
        last = np.searchsorted(edges, edges[-1])  # rounding must not reach a token of weight 0 at the end
        return int(ids[min(at, last)])

    def _adjust(self, logits: np.ndarray) -> np.ndarray:
        """logits with bias and penalties, a copy if there are any."""
        if not self._bias_ids.size and not self._counts:
            return logits
        p = self.params
        x = logits.astype(np.float32, copy=True)
        x[self._bias_ids] += self._bias
        if self._counts:
            ids = np.fromiter(self._counts.keys(), dtype=np.int64)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            seen = x[ids]
            seen = np.where(seen <= 0, seen * p.repetition_penalty, seen / p.repetition_penalty)
            x[ids] = seen - counts * p.frequency_penalty - p.presence_penalty
        return x

    def _candidates(self, x: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
        """ids and logits that pass top-k, top-p and min-p; best first where an order was needed."""
        p = self.params
        floor = np.float32(top + math.log(p.min_p)) if p.min_p > 0 else np.float32(-np.inf)
        if 0 < p.top_k < self.vocab_size:
            ids, values = _largest(x, p.top_k)
            if p.top_p < 1:
                keep = _reach(values, top, p.top_p)
                ids, values = ids[:keep], values[:keep]
        elif p.top_p < 1:
            ids, values = self._nucleus(x, top)
        elif p.min_p > 0:
            ids = np.flatnonzero(x >= floor)
            return ids, x[ids]
        else:
            return np.arange(self.vocab_size), x
        keep = max(1, int(np.count_nonzero(values >= floor)))
        return ids[:keep], values[:keep]

    def _nucleus(self, x: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
        """Top-p over the whole vocabulary, sorting only as many tokens as it takes."""
        total = float(np.exp(x - np.float32(top)).sum(dtype=np.float64))
        k = _FIRST_GUESS
        while k < self.vocab_size:
            ids, values = _largest(x, k)
            keep = _reach(values, top, self.params.top_p, total)
            if keep < k:
                return ids[:keep], values[:keep]
            k *= 8
        ids, values = _largest(x, self.vocab_size)
        keep = _reach(values, top, self.params.top_p, total)
        return ids[:keep], values[:keep]


def _largest(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and values of the k largest, best first, equals by lowest id."""
    if k < x.size:
        cut = np.partition(x, x.size - k)[x.size - k]
        ids = np.flatnonzero(x >= cut)
        if ids.size > k:  # equals at the cut: keep the lowest ids of them
            above = x[ids] > cut
            spare = k - int(np.count_nonzero(above))
            ids = np.sort(np.concatenate([ids[above], ids[~above][:spare]]))
    else:
        ids = np.arange(x.size)
    order = np.argsort(-x[ids], kind="stable")
    return ids[order], x[ids[order]]


def _reach(values: np.ndarray, top: float, p: float, total: float | None = None) -> int:
    """How many of the sorted values it takes for their probabilities to reach p; all of them if never.

    total: sum of exp(value - top) over everything that counts, default over `values`.
    """
    edges = np.cumsum(np.exp(values.astype(np.float64) - top))
    reached = int(np.searchsorted(edges, p * (edges[-1] if total is None else total), side="left"))
    return min(reached + 1, len(values))


def _require(value: Any, name: str, low: float, high: float, meaning: str) -> None:
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not math.isfinite(number) or not low <= number <= high:
        raise EdgeError(f"{name} must be {meaning}, not {value}.")


def _require_int(value: Any, name: str, low: int, meaning: str) -> None:
    if not isinstance(value, numbers.Integral) or int(value) < low:
        raise EdgeError(f"{name} must be {meaning}, not {value}.")

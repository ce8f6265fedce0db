"""Which neurons of a layer stay in memory: those that fire most often, by a running average.

Where tokens share little but the neurons that every token likes, an average over hundreds of tokens misses a
quarter less than the window of the last ones does (docs/flash.md has the figures). A slot that was read takes
the row of the least popular one only when it is more popular itself.
"""

from __future__ import annotations

import numpy as np

from edgellm.flash.places import Places

TOKENS = 256  # that the average goes over
HYSTERESIS = 1.05  # times as popular a newcomer must be
EVERY = 4  # tokens between two times that some may come to stay
WEAKEST = 64  # rows that are then known to be


class Favourites(Places):
    """The bookkeeping of one layer of `slots` slots with an arena of `capacity` rows.

    frequency: (slots,) share of tokens that each fired on, where it is known.
    """

    def __init__(self, slots: int, capacity: int, frequency: np.ndarray | None = None):
        super().__init__(slots, capacity)
        # Scores grow by a step that grows itself: the same as if all others shrank, without touching them.
        self.score = np.zeros(slots) if frequency is None else frequency.astype(np.float64) * TOKENS
        self.step = 1.0  # what a token adds to the scores of its slots
        self._now = 0
        self._weakest = np.zeros(0, np.int64)  # rows, the least popular first

    def forget(self) -> None:
        """Nothing is in memory."""
        super().forget()
        self._weakest = np.zeros(0, np.int64)

    def advance(self) -> None:
        """A token's slots have had their scores raised by `step`, see kernels/neuron_fire.py."""
        self.step *= 1 + 1 / TOKENS
        if self.step > 1e12:
            self.score /= self.step
            self.step = 1.0
        self._now += 1

    def settles(self, layer: int) -> bool:
        """Whether it is a layer's turn to take in who was read: averages move slowly, and it takes time."""
        return self.num_used < self.capacity or (self._now + layer) % EVERY == 0

    @property
    def bar(self) -> float:
        """The score from which on a slot may take the row of another."""
        if self.num_used < self.capacity:
            return -1.0
        if not len(self._weakest):
            return np.inf
        return float(self.score[self.pointer[self._weakest[0]]]) * HYSTERESIS

    def welcome(self, slots: np.ndarray, busy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots that were read: which of them may stay, and the rows that they get; the bookkeeping says so
        from now on. busy: slots, ascending, whose rows are in use."""
        free = min(len(slots), self.capacity - self.num_used)
        if free:
            rows = np.arange(self.num_used, self.num_used + free)
            self.num_used += free
            self._put(slots[:free], rows)
            return slots[:free], rows
        if self.capacity:
            self._look()
        if not self.capacity or not len(slots):
            return slots[:0], slots[:0]
        victims = self._weakest
        held = self.pointer[victims]
        at = np.minimum(np.searchsorted(busy, held), len(busy) - 1)
        victims = victims[busy[at] != held]
        scores = self.score[slots]
        best = np.argsort(-scores, kind="stable")[: len(victims)]
        rows = victims[: len(best)]
        better = scores[best] > self.score[self.pointer[rows]] * HYSTERESIS
        count = len(best) if better.all() else int(np.argmin(better))
        slots, rows = slots[best[:count]], rows[:count]
        self._weakest = self._weakest[~np.isin(self._weakest, rows)]
        self._put(slots, rows)
        return slots, rows

    def _look(self) -> None:
        scores = self.score[self.pointer]
        count = min(WEAKEST, self.capacity)
        rows = np.argpartition(scores, count - 1)[:count]
        self._weakest = rows[np.argsort(scores[rows])]

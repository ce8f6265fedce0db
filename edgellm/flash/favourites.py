"""Which neurons stay in memory: those that fire most often, by a running average.

Where tokens share little but the neurons that every token likes, an average over hundreds of tokens misses a
quarter less than the window of the last ones does (docs/flash.md has the figures). A slot that was read takes
the row of an unpopular one only when it is more popular itself: kernels/neuron_keep.py does that.
"""

from __future__ import annotations

import numpy as np

TOKENS = 256  # that the average goes over
HYSTERESIS = 1.05  # times as popular a newcomer must be
EVERY = 4  # tokens between two times that a layer's least popular rows are looked for
WEAKEST = 64  # rows that are then known to be


class Favourites:
    """The bookkeeping of `layers` arenas of `capacity` rows, for as many layers of `slots` slots.

    row_of: int64 (layers, slots), the row of each slot, or -1; pointer: int64 (layers, capacity), the slot in
    each row, or -1; used: int64 (layers,), rows that are in use, the first ones. score: float64 (layers,
    slots); step: what a token adds to the scores of its slots; bars: float64 (layers,), what a slot's score
    must exceed for it to stay. weakest: int64 (layers, 2 + WEAKEST), as layout.NeuronKeep has it.
    frequency: (layers, slots) share of tokens that need each slot, where it is known. fixed: nobody comes or
    goes. lent: rows that may be taken back, the last ones.
    """

    def __init__(
        self, layers: int, slots: int, capacity: int, frequency: np.ndarray | None = None,
        fixed: bool = False, lent: int = 0,
    ):  # fmt: skip
        self.capacity, self._fixed = min(capacity, slots), fixed or capacity - lent >= slots
        self.row_of = np.full((layers, slots), -1, np.int64)
        self.pointer = np.full((layers, self.capacity), -1, np.int64)
        self.used = np.zeros(layers, np.int64)
        # Scores grow by a step that grows itself: the same as if all others shrank, without touching them.
        self.score = np.zeros((layers, slots))
        if frequency is not None:
            self.score += frequency * TOKENS
        self.step = 1.0
        self.bars = np.full(layers, np.inf)
        self.weakest = np.zeros((layers, 2 + WEAKEST), np.int64)
        self._now = 0

    @staticmethod
    def nbytes(layers: int, slots: int) -> int:
        """What this takes, but for what depends on the capacity."""
        return layers * slots * 16

    def preload(self, layer: int) -> np.ndarray:
        """Take a layer's first slots into its rows, as many as there is room for; returns them."""
        slots = np.arange(self.capacity)
        self.row_of[layer, slots] = self.pointer[layer] = slots
        self.used[layer] = self.capacity
        return slots

    def vacate(self, first: int, but: int | None = None) -> None:
        """Empty the rows from `first` on, of all layers but one."""
        for layer in range(len(self.used)):
            if layer != but and self.used[layer] > first:
                rows = self.pointer[layer, first : self.used[layer]]
                self.row_of[layer, rows] = -1
                rows[:] = -1
                self.used[layer] = first
                self.weakest[layer, 1] = self.weakest[layer, 0]  # they may be among these

    def advance(self) -> None:
        """Before a token, whose slots will have their scores raised by `step`."""
        self.step *= 1 + 1 / TOKENS
        if self.step > 1e12:
            self.score /= self.step
            self.bars /= self.step
            self.step = 1.0
        if self._fixed or not self.capacity:
            return
        self._now += 1
        for layer in range(-self._now % EVERY, len(self.used), EVERY):
            self._look(layer)

    def _look(self, layer: int) -> None:
        """Find the rows that are to be given away first."""
        if self.used[layer] < self.capacity:
            self.bars[layer] = -1.0
            return
        scores = self.score[layer, self.pointer[layer]]
        count = min(WEAKEST, self.capacity)
        rows = np.argpartition(scores, count - 1)[:count]
        rows = rows[np.argsort(scores[rows], kind="stable")]
        self.weakest[layer, 0], self.weakest[layer, 1] = count, 0
        self.weakest[layer, 2 : 2 + count] = rows
        self.bars[layer] = scores[rows[0]] * HYSTERESIS

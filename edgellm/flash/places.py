"""Where in a layer's arena slots of neurons lie: what every way of keeping them knows."""

from __future__ import annotations

import numpy as np


class Places:
    """The rows of an arena of `capacity` rows that hold some of `slots` slots: [0, num_used), without holes.

    row_of: int64 (slots,), the row of each, or -1; pointer: int64 (capacity,), the slot in each row, or -1.
    """

    def __init__(self, slots: int, capacity: int):
        self.capacity = min(capacity, slots)
        self.row_of = np.full(slots, -1, np.int64)
        self.pointer = np.full(self.capacity, -1, np.int64)
        self.num_used = 0

    def preload(self, count: int) -> np.ndarray:
        """Take the first `count` slots, as many as there is room for, into the first rows; returns them."""
        count = min(count, self.capacity)
        self.row_of[:count] = self.pointer[:count] = np.arange(count)
        self.num_used = count
        return np.arange(count)

    def forget(self) -> None:
        """Nothing is in memory."""
        self.row_of[:] = self.pointer[:] = -1
        self.num_used = 0

    def missing(self, slots: np.ndarray) -> np.ndarray:
        """Those of the slots that are not in memory."""
        return slots[self.row_of[slots] < 0]

    def _put(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """The slots are in these rows now, and what was there is nowhere."""
        old = self.pointer[rows]
        self.row_of[old[old >= 0]] = -1
        self.pointer[rows], self.row_of[slots] = slots, rows

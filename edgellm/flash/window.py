"""Which neurons of a layer are in memory: the window of "LLM in a flash" (arXiv 2312.11514, section 3.3).

Slots of neurons lie in the rows of an arena, without holes: rows [0, num_used) are in use. `pointer` tells
the slot of a row, `last_active` the token that last needed it. With a window of k tokens, what none of the
last k needed is deleted: its row takes what arrives, and rows that stay empty are closed with the last ones.
Without a window a slot stays until its row is needed, the one longest idle first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Change(NamedTuple):
    """What a token asks of a layer. slots: those that are missing, ascending; rows: where they go, as many as
    found room, the first ones; moves: (n, 2) pairs of rows, from and to, to copy before anything is read."""

    slots: np.ndarray
    rows: np.ndarray
    moves: np.ndarray


_NONE = np.zeros(0, np.int64)
_NO_MOVES = np.zeros((0, 2), np.int64)


class Window:
    """The bookkeeping of one layer of `slots` slots with an arena of `capacity` rows, of which [0, num_used)
    are in use, without holes.

    row_of: int64 (slots,), the row of each, or -1; pointer: int64 (capacity,), the slot in each row, or -1.
    last: tokens that a slot stays after it was needed, None for as long as there is room.
    """

    def __init__(self, slots: int, capacity: int, last: int | None = None):
        self.capacity = min(capacity, slots)
        self.row_of = np.full(slots, -1, np.int64)
        self.pointer = np.full(self.capacity, -1, np.int64)
        self.num_used = 0
        self.last = last
        self.last_active = np.zeros(self.capacity, np.int64)
        self.now = 0

    def preload(self, count: int) -> np.ndarray:
        """Take the first `count` slots, as many as there is room for, into the first rows; returns them."""
        count = min(count, self.capacity)
        self.row_of[:count] = self.pointer[:count] = np.arange(count)
        self.num_used = count
        return np.arange(count)

    def forget(self) -> None:
        """Nothing is in memory."""
        self.row_of[:] = self.pointer[:] = -1
        self.last_active[:] = 0
        self.num_used = 0

    def missing(self, slots: np.ndarray) -> np.ndarray:
        """Those of the slots that are not in memory."""
        return slots[self.row_of[slots] < 0]

    def advance(self, slots: np.ndarray) -> Change:
        """A token needs these slots, ascending and each once."""
        self.now += 1
        rows = self.row_of[slots]
        here = rows >= 0
        self.last_active[rows[here]] = self.now
        missing = slots[~here]
        dead = _NONE
        if self.last is not None:
            dead = np.flatnonzero(self.last_active[: self.num_used] <= self.now - self.last)
        room = self._room(len(missing), dead)
        taken = missing[: len(room)]
        self._put(taken, room)
        moves = self._close(dead[len(room) :]) if len(dead) > len(room) else _NO_MOVES
        return Change(missing, self.row_of[taken] if len(moves) else room, moves)

    def _room(self, count: int, dead: np.ndarray) -> np.ndarray:
        """Up to `count` rows for what arrives: those of the dead, then unused ones, then the longest idle."""
        if count <= len(dead):
            return dead[:count]
        fresh = min(count - len(dead), self.capacity - self.num_used)
        rows = np.concatenate([dead, np.arange(self.num_used, self.num_used + fresh)])
        wanted = count - len(rows)
        if wanted:
            age = self.last_active[: self.num_used].copy()
            age[dead] = self.now  # they are taken already
            idle = int((age < self.now).sum())
            wanted = min(wanted, idle)
            if wanted:
                oldest = np.argpartition(age, wanted - 1)[:wanted]
                rows = np.concatenate([rows, np.sort(oldest)])
        self.num_used += fresh
        return rows

    def _put(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """The slots are in these rows now, and what was there is nowhere."""
        old = self.pointer[rows]
        self.row_of[old[old >= 0]] = -1
        self.pointer[rows], self.row_of[slots] = slots, rows
        self.last_active[rows] = self.now

    def _close(self, holes: np.ndarray) -> np.ndarray:
        """Delete the slots in these rows; the last rows move into the holes that stay between the others."""
        self.row_of[self.pointer[holes]] = -1
        self.pointer[holes] = -1
        end = self.num_used - len(holes)
        targets = holes[holes < end]
        sources = np.arange(end, self.num_used)
        sources = sources[self.pointer[sources] >= 0]
        self.pointer[targets], self.last_active[targets] = self.pointer[sources], self.last_active[sources]
        self.row_of[self.pointer[targets]] = targets
        self.pointer[end : self.num_used] = -1
        self.num_used = end
        return np.stack([sources, targets], axis=1)

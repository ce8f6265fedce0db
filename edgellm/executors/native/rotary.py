"""Tables of cosines and sines for rotary embeddings, one for all ops that turn alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgellm.kernels.layout import Rope
from edgellm.kernels.memory import address, reserve
from edgellm.program import ops

FEWEST = 512  # positions that are filled in at a time


class RotaryTables:
    """ropes: ops, and the records of their instructions, which are told where the table is.

    A table is float32 (context, 2, len(inv_freq)); its pages come as positions are filled in.
    """

    def __init__(self, ropes: Sequence[tuple[ops.Rope, np.ndarray]]):
        self._ropes = ropes
        self._tables: dict[tuple[bytes, float], np.ndarray] = {}
        self._context = self._filled = 0

    def reserve(self, context: int) -> None:
        """Room for `context` positions. Raises EdgeError where there is none."""
        if self._context >= context:
            return
        self._tables, self._filled, self._context = {}, 0, context
        for op, record in self._ropes:
            half = len(op.inv_freq)
            if _key(op) not in self._tables:
                memory = reserve(context * 8 * half, huge_pages=False, what="the rotary embedding table")
                self._tables[_key(op)] = memory.view(np.float32).reshape(context, 2, half)
            record[Rope.TABLE] = address(self._tables[_key(op)])

    def fill(self, last_position: int) -> None:
        """Make sure of all positions up to this."""
        if last_position < self._filled:
            return
        first = self._filled
        end = min(max(2 * first, last_position + 1, FEWEST), self._context)
        for key, op in _distinct(op for op, _ in self._ropes).items():
            table = self._tables[key]
            angles = np.arange(first, end, dtype=np.float64)[:, None] * op.inv_freq.astype(np.float64)
            table[first:end, 0] = np.cos(angles) * op.magnitude
            table[first:end, 1] = np.sin(angles) * op.magnitude
        self._filled = end

    @staticmethod
    def nbytes(program_ops: Iterable[ops.Op], context: int) -> int:
        """What the tables of a Program take."""
        distinct = _distinct(op for op in program_ops if isinstance(op, ops.Rope))
        return sum(context * 8 * len(op.inv_freq) for op in distinct.values())


def _key(op: ops.Rope) -> tuple[bytes, float]:
    return op.inv_freq.tobytes(), op.magnitude


def _distinct(ropes: Iterable[ops.Rope]) -> dict[tuple[bytes, float], ops.Rope]:
    return {_key(op): op for op in ropes}

"""Rotary tables against cosines and sines in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.executors.native.rotary import FEWEST, RotaryTables
from edgellm.kernels.layout import Rope
from edgellm.kernels.memory import address
from edgellm.program import ops

CONTEXT = 2000


def rope(base: float, magnitude: float = 1.0, half: int = 8) -> tuple[ops.Rope, np.ndarray]:
    frequencies = (base ** -np.linspace(0, 1, half)).astype(np.float32)
    return ops.Rope("q", 2, 2 * half, frequencies, "half", magnitude), np.zeros(len(Rope), np.int64)


def test_what_turns_alike_shares_a_table() -> None:
    ropes = [rope(1e4), rope(1e4), rope(1e4, magnitude=1.2), rope(5e5), rope(1e4)]
    tables = RotaryTables(ropes)
    tables.reserve(CONTEXT)
    at = [int(record[Rope.TABLE]) for _, record in ropes]
    assert at[0] == at[1] == at[4]
    assert len(set(at)) == 3
    assert RotaryTables.nbytes([op for op, _ in ropes], CONTEXT) == 3 * CONTEXT * 2 * 8 * 4
    last = 0
    for position in (0, FEWEST - 1, FEWEST, 1999):
        tables.fill(position)
        last = max(last, position)
        for op, record in ropes:
            table = next(t for t in tables._tables.values() if address(t) == record[Rope.TABLE])
            angles = np.arange(last + 1)[:, None] * op.inv_freq.astype(np.float64)
            np.testing.assert_allclose(table[: last + 1, 0], np.cos(angles) * op.magnitude, atol=1e-6)
            np.testing.assert_allclose(table[: last + 1, 1], np.sin(angles) * op.magnitude, atol=1e-6)


def test_a_longer_context_makes_them_anew() -> None:
    ropes = [rope(1e4)]
    tables = RotaryTables(ropes)
    tables.reserve(10)
    tables.fill(9)
    tables.reserve(5)  # there is room already
    before = int(ropes[0][1][Rope.TABLE])
    tables.reserve(600)
    tables.fill(3)
    table = next(iter(tables._tables.values()))
    assert table.shape[0] == 600
    assert int(ropes[0][1][Rope.TABLE]) == address(table)
    assert before != 0
    assert table[3, 1, 0] == pytest.approx(np.sin(3.0))


def test_models_without_rotary_embeddings() -> None:
    tables = RotaryTables([])
    tables.reserve(100)
    tables.fill(99)
    assert RotaryTables.nbytes([], 100) == 0

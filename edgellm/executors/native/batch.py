"""What the kernels are told about one step: the rows of one or several sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.kernels import layout
from edgellm.kernels.attention_memory import COUNTER, Scratch, partial_bytes
from edgellm.kernels.layout import State, align, record
from edgellm.kernels.memory import address, aligned, reserve
from edgellm.program import ops
from edgellm.program.program import Program

if TYPE_CHECKING:
    from edgellm.executors.native.session import NativeSession


@dataclass
class Piece:
    """Neighbouring tokens of one sequence. last: the sequence has no more in this call."""

    session: NativeSession
    position: int  # of the first of them
    ids: np.ndarray  # int64
    last: bool


def steps(work: Sequence[tuple[NativeSession, np.ndarray]], rows: int) -> Iterator[list[Piece]]:
    """Cut the tokens of several sequences into steps of at most `rows` rows, in order."""
    step: list[Piece] = []
    room = rows
    for session, ids in work:
        for first in _cuts(len(ids), room, rows):
            count = min(room, len(ids) - first)
            last = first + count == len(ids)
            step.append(Piece(session, session.position + first, ids[first : first + count], last))
            room -= count
            if room == 0:
                yield step
                step, room = [], rows
    if step:
        yield step


def _cuts(length: int, first: int, each: int) -> Iterator[int]:
    """Where the pieces of `length` tokens begin: one of at most `first`, then of `each`."""
    yield 0
    yield from range(first, length, each)


class Batch:
    """The State of a step of up to `rows` rows, and of its tail, with all that they point at."""

    def __init__(self, rows: int, translate: Callable[[np.ndarray], np.ndarray] | None = None, **fixed: int):
        """fixed: slots of State that are the same for all steps. translate: makes of token ids, int64, the
        numbers of their rows in the table that is looked up in."""
        self._translate = translate
        self._ids, self._positions, self._wanted = (aligned(rows, np.int64) for _ in range(3))
        self._sequences = aligned(rows * len(layout.Sequence), np.int64).reshape(rows, -1)
        tables = {
            "POSITIONS": address(self._positions), "IDS": address(self._ids),
            "SEQUENCE_TABLE": address(self._sequences), "WANTED": address(self._wanted), **fixed,
        }  # fmt: skip
        self._tail = record(State, **tables)
        self._state = record(State, TAIL=address(self._tail), **tables)

    def fill(self, pieces: Sequence[Piece], all_logits: bool, look_up: bool = True) -> tuple[np.ndarray, int]:
        """Describe a step. Logits are wanted of each sequence's last token, or of all. look_up: embeddings
        will be looked up.

        Returns the State and the number of rows of logits.
        """
        first = wanted = 0
        for sequence, piece in zip(self._sequences, pieces, strict=False):
            count = len(piece.ids)
            rows = slice(first, first + count)
            self._ids[rows] = piece.ids
            self._positions[rows] = np.arange(piece.position, piece.position + count)
            sequence[:] = record(
                layout.Sequence, FIRST_ROW=first, ROWS=count, POSITION=piece.position,
                KV=piece.session.kv_address,
            )  # fmt: skip
            first += count
            new = count if all_logits else int(piece.last)
            self._wanted[wanted : wanted + new] = np.arange(first - new, first)
            wanted += new
        if self._translate is not None and look_up:
            self._ids[:first] = self._translate(self._ids[:first])
        self._state[State.TOKENS], self._state[State.SEQUENCES] = first, len(pieces)
        self._tail[State.TOKENS] = wanted
        return self._state, wanted


class AttentionMemory:
    """What attention works in, for steps of up to `rows` rows. A virtual reservation: only what it uses
    becomes memory."""

    def __init__(self, program: Program, rows: int, threads: int):
        each = counters = partials = 0
        for op in program.ops:
            if isinstance(op, ops.Attend):
                group, width = op.heads // op.kv_heads, align(op.head_dim, 16)
                each = max(each, Scratch(group, width).nbytes)
                counters = max(counters, (2 + rows * op.kv_heads) * COUNTER)
                partials = max(partials, rows * op.kv_heads * partial_bytes(group, width))
        what = "attention's scratch memory"
        self._areas = [reserve(n, huge_pages=False, what=what) for n in (each * threads, counters, partials)]
        names = ("SCRATCH", "COUNTERS", "PARTIALS")
        self.slots = {name: address(area) for name, area in zip(names, self._areas, strict=True)}
        self.slots["SCRATCH_BYTES"] = each

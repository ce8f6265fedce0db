"""Steps that stop between instructions: for weights that come from flash, and to find out who fires."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgellm.executors.native.instructions import Lowered
from edgellm.executors.native.neurons import Cut, Meet
from edgellm.flash.ring import Ring
from edgellm.kernels.layout import Instruction, State, Step, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.team import Team


@dataclass(frozen=True)
class Segment:
    """Instructions that run in one call of the team; the first of them may need the ring's next unit. cut:
    what happens before. tail: they run for the rows that logits are wanted of."""

    step: np.ndarray
    needs_unit: bool
    cut: Cut | None
    tail: bool


class Segments:
    """The instructions of a step, cut where somebody waits, in groups: see instructions.Group."""

    def __init__(
        self, lowered: Lowered, table: np.ndarray, ring: Ring | None, team: Team, kernel: int,
        meet: Meet | None = None, mend: Callable[[], None] | None = None,
    ):  # fmt: skip
        """meet: called with every cut, and the number of rows behind it; mend: when a kernel stops a step,
        which then goes on."""
        self._ring, self._team, self._kernel, self._meet, self._mend = ring, team, kernel, meet, mend
        self._stopped = aligned(1, np.int64)
        self.compute_seconds = 0.0
        units = [i.unit for i in lowered.instructions if i.unit is not None]
        if units != list(range(len(units))):
            raise ValueError("the weights are not read in the order in which they are used")
        self._cuts = {cut.at: cut for cut in lowered.cuts}
        self.groups: list[list[Segment]] = []
        for group, end in zip(lowered.groups, lowered.ends, strict=True):
            inside = range(group.first + 1, end)
            stops = (i for i in inside if lowered.instructions[i].unit is not None or i in self._cuts)
            self.groups.append(
                [
                    self._segment(lowered, table, first, behind)
                    for first, behind in pairwise([group.first, *stops, end])
                ]
            )
        most = max(sum(segment.needs_unit for segment in group) for group in self.groups)
        self.shared = ring is not None and most <= ring.slots  # whether the ring holds a group

    def _segment(self, lowered: Lowered, table: np.ndarray, first: int, end: int) -> Segment:
        tail = lowered.tail - first
        step = record(
            Step, COUNT=end - first, TABLE=address(table) + 8 * len(Instruction) * first, TAIL=max(0, tail),
            STOPPED=address(self._stopped),
        )  # fmt: skip
        needs_unit = lowered.instructions[first].unit is not None
        return Segment(step, needs_unit, self._cuts.get(first), tail <= 0)

    def restart(self) -> None:
        """After a step that broke off."""
        self._stopped[0] = 0
        if self._ring is not None:
            self._ring.restart()

    def run(self, state: np.ndarray, wanted: int) -> None:
        """A whole step. state: its State; wanted: rows of logits."""
        for group in self.groups:
            for segment in group:
                if segment.needs_unit:
                    assert self._ring is not None
                    self._ring.wait()
                self._compute(segment, state, wanted)
                if segment.needs_unit:
                    assert self._ring is not None
                    self._ring.release()

    def _compute(self, segment: Segment, state: np.ndarray, wanted: int) -> None:
        if segment.tail and not wanted:
            return
        if segment.cut is not None and self._meet is not None:
            self._meet(segment.cut, wanted if segment.tail else int(state[State.TOKENS]))
        step = segment.step
        while True:
            begin = time.perf_counter()
            self._team.run(self._kernel, address(step), address(state))
            self.compute_seconds += time.perf_counter() - begin
            if not (done := int(self._stopped[0])):
                return
            assert self._mend is not None
            self._stopped[0] = 0
            self._mend()
            step = self._rest(step, done)

    @staticmethod
    def _rest(step: np.ndarray, done: int) -> np.ndarray:
        """The step without its first `done` instructions."""
        rest = step.copy()
        rest[Step.COUNT] -= done
        rest[Step.TABLE] += 8 * len(Instruction) * done
        rest[Step.TAIL] = max(0, rest[Step.TAIL] - done)
        return rest

    @contextmanager
    def held(self, number: int) -> Iterator[Callable[[np.ndarray, int], None]]:
        """One group of several steps, with a single read of its weights: yields run(state, wanted)."""
        group = self.groups[number]
        units = sum(segment.needs_unit for segment in group)
        for _ in range(units):
            assert self._ring is not None
            self._ring.wait()

        def run(state: np.ndarray, wanted: int) -> None:
            for segment in group:
                self._compute(segment, state, wanted)

        yield run
        for _ in range(units):
            assert self._ring is not None
            self._ring.release()

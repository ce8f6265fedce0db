"""Steps whose weights come from flash: between the instructions that need them, somebody waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgellm.executors.native.instructions import Lowered
from edgellm.flash.ring import Ring
from edgellm.kernels.layout import Instruction, Step, record
from edgellm.kernels.memory import address
from edgellm.kernels.team import Team


@dataclass(frozen=True)
class Segment:
    """Instructions that run in one call of the team; the first of them may need the ring's next unit."""

    step: np.ndarray
    needs_unit: bool


class Segments:
    """The instructions of a step, cut where weights are waited for, in groups: see instructions.Group."""

    def __init__(self, lowered: Lowered, table: np.ndarray, ring: Ring, team: Team, kernel: int):
        self._ring, self._team, self._kernel = ring, team, kernel
        self.compute_seconds = 0.0
        units = [i.unit for i in lowered.instructions if i.unit is not None]
        if units != list(range(len(units))):
            raise ValueError("the weights are not read in the order in which they are used")
        self.groups: list[list[Segment]] = []
        for group, end in zip(lowered.groups, lowered.ends, strict=True):
            waits = (i for i in range(group.first + 1, end) if lowered.instructions[i].unit is not None)
            cuts = [group.first, *waits, end]
            self.groups.append(
                [self._segment(lowered, table, first, behind) for first, behind in pairwise(cuts)]
            )
        most = max(sum(segment.needs_unit for segment in group) for group in self.groups)
        self.shared = most <= ring.slots  # whether the ring holds a group

    @staticmethod
    def _segment(lowered: Lowered, table: np.ndarray, first: int, end: int) -> Segment:
        tail = lowered.tail - first
        step = record(
            Step, COUNT=end - first, TABLE=address(table) + 8 * len(Instruction) * first, TAIL=max(0, tail)
        )
        return Segment(step, lowered.instructions[first].unit is not None)

    def restart(self) -> None:
        """After a step that broke off."""
        self._ring.restart()

    def run(self, state: int) -> None:
        """A whole step."""
        for group in self.groups:
            for segment in group:
                if segment.needs_unit:
                    self._ring.wait()
                self._compute(segment, state)
                if segment.needs_unit:
                    self._ring.release()

    def _compute(self, segment: Segment, state: int) -> None:
        begin = time.perf_counter()
        self._team.run(self._kernel, address(segment.step), state)
        self.compute_seconds += time.perf_counter() - begin

    @contextmanager
    def held(self, number: int) -> Iterator[Callable[[int], None]]:
        """One group of several steps, with a single read of its weights: yields run(state)."""
        group = self.groups[number]
        units = sum(segment.needs_unit for segment in group)
        for _ in range(units):
            self._ring.wait()

        def run(state: int) -> None:
            for segment in group:
                self._compute(segment, state)

        yield run
        for _ in range(units):
            self._ring.release()

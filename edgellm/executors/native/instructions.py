"""What a Program is lowered to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgellm.executors.native.buffers import Buffer
from edgellm.executors.native.cost import Cost
from edgellm.executors.native.neurons import Cut
from edgellm.program import ops


@dataclass
class Instruction:
    """One kernel call. The record's fields are by name, see the kernel's slots. unit: number of the read
    that brings its weights, if they are not always in memory. lone: it is left out for several tokens. stops:
    address of the int64 with which it may end the step, or 0."""

    kernel: str
    record: np.ndarray
    cost: Cost
    barrier_one: bool = False
    barrier_many: bool = False
    unit: int | None = None
    lone: bool = False
    stops: int = 0


@dataclass(frozen=True)
class Group:
    """The instructions from `first` on, of a transformer block or of what is before or behind them. live: the
    buffers whose content they take over from the group before."""

    first: int
    live: tuple[Buffer, ...]


@dataclass
class Lowered:
    """What the executor needs to run: instructions, and what they point at."""

    instructions: list[Instruction] = field(default_factory=list)
    ropes: list[tuple[ops.Rope, np.ndarray]] = field(default_factory=list)  # records to point at a table
    constants: list[np.ndarray] = field(default_factory=list)
    tail: int = 0  # number of the first instruction that runs for the rows that logits are wanted of
    groups: list[Group] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    @property
    def ends(self) -> list[int]:
        """The number of the instruction behind each group."""
        return [*(group.first for group in self.groups[1:]), len(self.instructions)]

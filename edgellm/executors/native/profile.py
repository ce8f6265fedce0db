"""Where the time of a step goes: a run in which every thread writes down when it did what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.executors.native.batch import Piece
from edgellm.executors.native.instructions import Lowered
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Step
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target
from edgellm.kernels.team import Team

KERNEL = "step/part=profile"


@dataclass
class OpTime:
    """All instructions of one kind, over the steps of a profiled call.

    seconds: sum over the instructions of the slowest thread's time. mean_seconds and wait_seconds: of the
    average thread, in the instructions and in the barriers behind them; over all kinds they add up to the
    time of the steps.
    """

    label: str
    calls: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    int8_macs: int = 0
    float_macs: int = 0
    seconds: float = 0.0
    mean_seconds: float = 0.0
    wait_seconds: float = 0.0


class Profiler:
    """Runs steps of an executor with the profiling kernel and adds up what its instructions took."""

    def __init__(self, lowered: Lowered, step: np.ndarray, threads: int, target: Target):
        self._instructions, self._tail = lowered.instructions, lowered.tail
        self._kernel = load_kernels([KERNEL], target)[KERNEL]
        count = len(self._instructions)
        self._times = aligned(threads * count * 3, np.int64).reshape(threads, count, 3)
        self._step = aligned(len(Step), np.int64)
        self._step[:] = step
        self._step[Step.TIMES] = address(self._times)
        self._found: dict[str, OpTime] = {}

    def run(self, team: Team, state: int, pieces: Sequence[Piece], wanted: int) -> None:
        """Run one step: `pieces` of sequences, and `wanted` rows of them behind the last attention."""
        team.run(self._kernel, address(self._step), state)
        rows = sum(len(piece.ids) for piece in pieces)
        begun, ended, waited = np.moveaxis(self._times, 2, 0) * 1e-9
        work, wait = ended - begun, waited - ended
        for i, instruction in enumerate(self._instructions):
            if i == self._tail and wanted == 0:
                break
            cost = instruction.cost
            op = self._found.setdefault(cost.label, OpTime(cost.label))
            here = rows if i < self._tail else wanted
            seen = [cost.kv_positions(piece.position, len(piece.ids)) for piece in pieces]
            op.calls += 1
            op.weight_bytes += cost.weight_bytes
            op.kv_bytes += cost.kv_bytes * sum(read for read, _ in seen)
            op.int8_macs += cost.int8_macs * here
            op.float_macs += cost.float_macs * here + cost.kv_macs * sum(rows for _, rows in seen)
            op.seconds += float(work[:, i].max())
            op.mean_seconds += float(work[:, i].mean())
            op.wait_seconds += float(wait[:, i].mean())

    def result(self) -> list[OpTime]:
        """In the order in which the kinds first ran."""
        return list(self._found.values())

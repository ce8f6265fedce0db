"""What reading from a device costs: a table of measured times and a cost model fitted to it.

edgellm.flash.probe measures; here the figures are kept, interpolated and explained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from edgellm.errors import EdgeError

FORMAT = 1  # of to_dict()
NEARLY = 0.95  # of the best throughput: what repeated measurements differ by

Pattern = Literal["random", "sequential"]


@dataclass(frozen=True)
class Cell:
    """One measurement: reads of `nbytes` with `depth` of them in flight at all times.

    seconds: the time of all requests over their number, so `depth * seconds` is a request's mean latency.
    cpu_seconds: processor time of this process for a request, whoever waited meanwhile.
    spread: what lies between the fastest and the slowest round, as a share of `seconds`; 0 if there was one.
    """

    pattern: Pattern
    direct: bool
    nbytes: int
    depth: int
    requests: int
    seconds: float
    cpu_seconds: float
    spread: float

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds


@dataclass(frozen=True)
class Fit:
    """seconds of n requests of b bytes = n * (request_seconds + b / bytes_per_second), for one depth.

    bytes_per_second: infinite if longer requests took no longer. error: root mean square of the relative
    errors over the measured sizes, of which `largest` is the last.
    """

    depth: int
    request_seconds: float
    bytes_per_second: float
    error: float
    largest: int

    @property
    def gap_bytes(self) -> int:
        """What is delivered in the time that a request costs: two neighbours less apart are better one.

        At most `largest`: of a longer read in their place nothing is known.
        """
        return int(min(self.request_seconds * self.bytes_per_second, self.largest))


def fit(depth: int, nbytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """The least squares of the relative errors; neither coefficient is negative.

    nbytes, seconds: (n,) sizes of requests and the time of each, n at least 2.
    """
    times = np.asarray(seconds, np.float64)
    terms = np.stack([np.ones(len(times)), np.asarray(nbytes, np.float64)], axis=1) / times[:, None]  # (n, 2)
    best = np.linalg.lstsq(terms, np.ones(len(times)), rcond=None)[0]
    if (best < 0).any():  # then the better of the two models with a single coefficient
        alone = [np.where(np.arange(2) == i, terms[:, i].sum() / (terms[:, i] ** 2).sum(), 0) for i in (0, 1)]
        best = min(alone, key=lambda c: float(((terms @ c - 1) ** 2).sum()))
    error = float(np.sqrt(((terms @ best - 1) ** 2).mean()))
    speed = float(1 / best[1]) if best[1] else math.inf
    return Fit(depth, float(best[0]), speed, error, max(nbytes))


@dataclass(frozen=True)
class DeviceModel:
    """A measured device and what is derived from the measurements.

    device: the kernel's name of it. kind, engine: who read, as Reader tells it. direct: whether the file
    system has reads past the page cache; everything below means these by default, or with direct=False those
    through the cache. date: of the measurement, ISO 8601. scratch_bytes: of the file that was read.
    """

    folder: str
    device: str
    file_system: str
    kernel: str
    date: str
    kind: str
    engine: str
    direct: bool
    scratch_bytes: int
    cells: tuple[Cell, ...]

    def depths(self, direct: bool | None = None) -> list[int]:
        return [int(depth) for depth in self._grid(direct).depths]

    def sizes(self, direct: bool | None = None) -> list[int]:
        """Bytes of the requests that were measured."""
        return [int(size) for size in self._grid(direct).sizes]

    def cell(self, nbytes: int, depth: int, direct: bool | None = None) -> Cell:
        """The random reads of one size and depth. Raises EdgeError if they were not measured."""
        grid = self._grid(direct)
        if (nbytes, depth) not in grid.cells:
            raise EdgeError(
                f"{self.device}: {nbytes} bytes at depth {depth} were not measured, only {_list(grid.sizes)} "
                f"bytes and depths {_list(grid.depths)}."
            )
        return grid.cells[nbytes, depth]

    def sequential(self, direct: bool | None = None) -> list[Cell]:
        """The cells of sequential reads, by depth."""
        wanted = self.direct if direct is None else direct
        found = [cell for cell in self.cells if cell.pattern == "sequential" and cell.direct == wanted]
        return sorted(found, key=lambda cell: cell.depth)

    def fit(self, depth: int, direct: bool | None = None) -> Fit:
        """The cost model at a depth that was measured. Raises EdgeError for another."""
        sizes = self.sizes(direct)
        return fit(depth, sizes, [self.cell(nbytes, depth, direct).seconds for nbytes in sizes])

    def longest(self, depth: int, direct: bool | None = None) -> int:
        """Bytes from which on longer requests are hardly faster at this depth; for Reader(longest=...)."""
        cells = [self.cell(nbytes, depth, direct) for nbytes in self.sizes(direct)]
        best = max(cell.bytes_per_second for cell in cells)
        return next(cell.nbytes for cell in cells if cell.bytes_per_second >= NEARLY * best)

    def seconds(self, n: float, bytes_each: float, depth: float, direct: bool | None = None) -> float:
        """Time of n random reads of `bytes_each` bytes, `depth` of them in flight, from the measured table.

        Between measured sizes and depths it interpolates, logarithm against logarithm. Fewer than `depth`
        requests are in flight by themselves; one longer than any measured counts as several of those. Raises
        EdgeError outside of what was measured.
        """
        return self._cost(n, bytes_each, depth, direct, cpu=False)

    def cpu_seconds(self, n: float, bytes_each: float, depth: float, direct: bool | None = None) -> float:
        """Processor time that the same reads take away from computing."""
        return self._cost(n, bytes_each, depth, direct, cpu=True)

    def _cost(self, n: float, bytes_each: float, depth: float, direct: bool | None, cpu: bool) -> float:
        grid = self._grid(direct)
        low, high = grid.sizes[0], grid.sizes[-1]
        whole, rest = divmod(bytes_each, high)
        pieces = [(count, nbytes) for count, nbytes in ((n * whole, high), (n, rest)) if count and nbytes]
        together = min(depth, max(1.0, sum(count for count, _ in pieces)))
        if n < 0 or bytes_each < low or not grid.depths[0] <= together <= depth <= grid.depths[-1]:
            raise EdgeError(
                f"{self.device}: {n:g} reads of {bytes_each:g} bytes at depth {depth:g} are outside of what "
                f"was measured (from {low} bytes, depth {grid.depths[0]} to {grid.depths[-1]})."
            )
        # What is left of a long request can be shorter than any measured; it costs no more than the shortest.
        costs = [count * grid.interpolate(max(low, nbytes), together, cpu) for count, nbytes in pieces]
        return float(sum(costs))

    def _grid(self, direct: bool | None) -> _Grid:
        wanted = self.direct if direct is None else direct
        if wanted not in self._grids:
            raise EdgeError(f"{self.device}: {self.file_system} has no reads past the page cache.")
        return self._grids[wanted]

    @cached_property
    def _grids(self) -> dict[bool, _Grid]:
        random = [cell for cell in self.cells if cell.pattern == "random"]
        return {
            direct: _Grid([cell for cell in random if cell.direct == direct])
            for direct in {cell.direct for cell in random}
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> DeviceModel:
        """The inverse of to_dict(). Raises ValueError, KeyError or TypeError for anything else."""
        fields = dict(data)
        if fields.pop("format") != FORMAT:
            raise ValueError("another format of device model")
        return DeviceModel(**{**fields, "cells": tuple(Cell(**cell) for cell in fields["cells"])})


class _Grid:
    """The cells of random reads in one mode: every size at every depth."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = {(cell.nbytes, cell.depth): cell for cell in cells}
        self.sizes = sorted({cell.nbytes for cell in cells})
        self.depths = sorted({cell.depth for cell in cells})
        rows = [[self.cells[nbytes, depth] for nbytes in self.sizes] for depth in self.depths]
        self._seconds = np.log([[cell.seconds for cell in row] for row in rows])  # (depths, sizes)
        # Processor time has a clock of its own, which may not have moved during few requests.
        self._cpu = np.log([[max(cell.cpu_seconds, 1e-9) for cell in row] for row in rows])

    def interpolate(self, nbytes: float, depth: float, cpu: bool) -> float:
        """Seconds a request, within the grid."""
        table = self._cpu if cpu else self._seconds
        by_depth = [np.interp(math.log(nbytes), np.log(self.sizes), row) for row in table]
        return math.exp(float(np.interp(math.log(depth), np.log(self.depths), by_depth)))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

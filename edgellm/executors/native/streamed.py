"""Packed weights of which a part stays in memory and the rest comes from flash, in the order of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.packing import VECTOR, Form, Packed, Part, vector_values
from edgellm.flash.budget import Budget
from edgellm.flash.reader import Reader
from edgellm.flash.residency import Matrix, Residency, Span
from edgellm.flash.ring import Ring
from edgellm.flash.rows import RowTiles
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.layout import align
from edgellm.kernels.memory import address, reserve
from edgellm.program import access, ops
from edgellm.program.program import Program

LARGEST_READ = 64 << 20  # bytes that are asked for at once while pinned weights are read
GUARD = 4096  # bytes behind the last tile that kernels may prefetch


@dataclass(frozen=True)
class Uses:
    """Matrices in the order of use, each once, and the table that token embeddings are looked up in."""

    matrices: tuple[ops.Weight, ...]
    groups: tuple[int, ...]  # of the matrices
    table: ops.Weight | None
    pinned: frozenset[ops.Weight]  # that are looked up in by position: they stay in memory


def uses(program: Program, sparse: SparseFfn | None = None) -> Uses:
    """What a step of the Program reads but neurons in slots. A table that only embeds is none of the
    matrices."""
    found: dict[ops.Weight, int] = {}
    pinned: set[ops.Weight] = set()
    table, group, layer = None, 0, None
    for op in program.ops:
        if op.layer != layer:
            group, layer = group + 1, op.layer
        if isinstance(op, ops.Embed) and op.index == "token":
            table = op.table
            continue
        names = access.matrices(op)
        if sparse is not None and isinstance(op, ops.Ffn):
            names = {weight.name: weight for weight in sparse.weights(op)[0]}
        for name, weight in names.items():
            found.setdefault(weight, group)
            if name == "table":
                pinned.add(weight)
    return Uses(tuple(found), tuple(found.values()), table, frozenset(pinned))


class StreamedStore:
    """The weights of a file of packed tiles, as a Residency says where they are.

    packed: layout of every weight; offsets: where its tiles begin in the file. Nothing is read before load().
    """

    def __init__(
        self, checkpoint: Checkpoint, packed: dict[ops.Weight, Packed], offsets: dict[ops.Weight, int],
        used: Uses, residency: Residency, reader: Reader, tiles_at_once: int, budget: Budget,
    ):  # fmt: skip
        self._checkpoint, self._layouts, self.reader = checkpoint, packed, reader
        self.residency, self.budget = residency, budget
        self.nbytes = sum(p.nbytes for p in packed.values())
        step = reader.alignment
        self._loads: list[tuple[int, int, int]] = []  # offset, bytes, where to: relative to the arena
        places, units = self._place(residency, step)
        self._pinned = places[-1]
        room = align(places[-1], step) + GUARD + step
        self._arena = reserve(room, huge_pages=True, what="the pinned weights")
        base = align(address(self._arena), step)
        self._base = base
        self.ring = Ring(reader, units, residency.slots, residency.slot_bytes) if units else None
        parts: dict[int, list[Part]] = {i: [] for i in range(len(used.matrices))}
        unit = 0
        for span, place in zip(residency.spans, places, strict=False):
            those = parts[span.matrix]
            if not span.pinned:
                assert self.ring is not None
                those.append(Part(span.first, span.tiles, self.ring.addresses[unit], unit))
                unit += 1
            elif those and those[-1].unit is None and _end(those[-1], span, packed, used) == base + place:
                those[-1] = those[-1]._replace(tiles=those[-1].tiles + span.tiles)
            else:
                those.append(Part(span.first, span.tiles, base + place))
        self._packed = {
            weight: replace(packed[weight], address=parts[i][0].address, parts=tuple(parts[i]))
            for i, weight in enumerate(used.matrices)
        }
        self.rows: RowTiles | None = None
        if used.table is not None:
            self._add_table(used.table, offsets[used.table], tiles_at_once)

    def _place(self, residency: Residency, step: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Where in the arena each span begins (nowhere in particular for what is not pinned) and, last, where
        the arena ends; and the reads of the ring. Neighbours in the file stay neighbours in the arena."""
        places: list[int] = []
        units: list[tuple[int, int]] = []
        end = file_end = 0
        for span in residency.spans:
            if not span.pinned:
                units.append((span.offset, span.nbytes))
                places.append(0)
                continue
            joined = bool(self._loads) and 0 <= span.offset - file_end < step
            start = end + span.offset - file_end if joined else align(end, step) + span.offset % step
            places.append(start)
            end, file_end = start + span.nbytes, span.offset + span.nbytes
            if joined and end - self._loads[-1][2] <= LARGEST_READ:
                offset, _, to = self._loads[-1]
                self._loads[-1] = (offset, align(file_end, step) - offset, to)
            else:
                offset = span.offset // step * step
                self._loads.append((offset, align(file_end, step) - offset, start - span.offset % step))
        places.append(end)
        return places, units

    def _add_table(self, table: ops.Weight, offset: int, tiles_at_once: int) -> None:
        """Let the embedding be looked up: in memory if it is there, else in the tiles that are read."""
        held = self._packed.get(table)
        if held is not None and len(held.parts) == 1 and held.parts[0].unit is None:
            self._table = held
            return
        layout = self._layouts[table]
        self.rows = RowTiles(self.reader, offset, layout.stride, layout.rows, tiles_at_once)
        self._table = replace(layout, address=self.rows.address)

    def __getitem__(self, weight: ops.Weight) -> Packed:
        return self._packed[weight]

    def table(self, weight: ops.Weight) -> Packed:
        """What an Embed of token ids, as `rows` translates them, looks up in."""
        return self._table

    def vector(self, weight: ops.Weight) -> np.ndarray:
        """float32 values of a norm or bias."""
        return vector_values(self._checkpoint.tensors[weight.name], weight)

    @property
    def forms(self) -> dict[ops.Weight, Form]:
        """The layout of every matrix."""
        return {weight: packed.form for weight, packed in self._layouts.items() if packed.form != VECTOR}

    @property
    def resident(self) -> np.ndarray:
        """The largest piece of memory that holds weights, uint8."""
        return (
            self._arena if self.ring is None or self._pinned > self.ring.memory.nbytes else self.ring.memory
        )

    @property
    def source(self) -> str:
        """One phrase: where the weights come from."""
        held = self.residency
        if not held.streamed_bytes:
            return f"read from {self.reader.path}, all in memory"
        share = held.pinned_bytes / (held.pinned_bytes + held.streamed_bytes)
        return (
            f"{share:.0%} in memory, {held.streamed_bytes / 2**20:.0f} MiB read for every token from "
            f"{self.reader.path} ({self.reader.engine})"
        )

    def load(self) -> None:
        """Read what is pinned, and begin with the ring. Raises EdgeError where it cannot be read."""
        waiting: list = []
        for offset, nbytes, to in self._loads:
            waiting.append(self.reader.start(offset, nbytes, self._base + to))
            if len(waiting) > 1:
                self.reader.wait(waiting.pop(0))
        for ticket in waiting:
            self.reader.wait(ticket)
        if self.ring is not None:
            self.ring.fill()


def _end(part: Part, span: Span, packed: dict[ops.Weight, Packed], used: Uses) -> int:
    """The address behind a part of the span's matrix."""
    return part.address + part.tiles * packed[used.matrices[span.matrix]].stride


def matrices(
    packed: dict[ops.Weight, Packed], offsets: dict[ops.Weight, int], used: Uses
) -> Sequence[Matrix]:
    """What the residency is planned of."""
    return [
        Matrix(offsets[weight], packed[weight].stride, packed[weight].tiles, group, weight in used.pinned)
        for weight, group in zip(used.matrices, used.groups, strict=True)
    ]

"""Neurons from flash: those that a token needs and that are not in memory are read, a layer's in one batch.

Each layer has an arena of rows, one for a slot (formats/slots.py), kept by Favourites or by a Window. What
is not to stay there, and the many that a whole prompt needs, goes to the staging area, an image of the layer
as it is in the file, where near neighbours are read in one piece.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError
from edgellm.flash.favourites import Favourites
from edgellm.flash.lists import Lists, tell
from edgellm.flash.merge import merge
from edgellm.flash.reader import Reader
from edgellm.flash.ticket import Ticket
from edgellm.flash.uring import Ring
from edgellm.flash.window import Window
from edgellm.formats.slots import SlotLayout
from edgellm.kernels.layout import align
from edgellm.kernels.memory import address, reserve

GAP = 40 << 10  # bytes between neighbours that are read along, where the device was not measured
LONGEST = 1 << 20  # bytes of a read while the arenas are filled
Check = Callable[[np.ndarray, int], np.ndarray]  # addresses (n,), words each -> checksums (n,)


@dataclass(frozen=True)
class Policy:
    """How neurons come and go.

    nothing_stays: every weight is read for every token, neuron or not. everything: all neurons are read that
    are not in memory, needed or not. fixed: the first ones stay in memory, and nothing else does. apart: up
    and down are read by a request each. merge: near neighbours are read together. window: tokens that a
    neuron stays after it fired (window.py); None: the ones that fire most stay (favourites.py).
    """

    nothing_stays: bool = False
    everything: bool = False
    fixed: bool = False
    apart: bool = False
    merge: bool = True
    window: int | None = None


# The rungs of the ladder, as in table 2 of the paper.
POLICIES = {
    "naive": Policy(nothing_stays=True, everything=True, fixed=True),
    "hybrid": Policy(everything=True, fixed=True),
    "active": Policy(fixed=True, apart=True, merge=False),
    "window": Policy(apart=True, merge=False),
    "bundle": Policy(merge=False),
    "merged": Policy(),
}


@dataclass
class NeuronStats:
    """bytes and requests that were read; neurons that were needed, and those of them that were not in memory;
    seconds that computation waited for reads, and that the bookkeeping took."""

    bytes: int = 0
    reads: int = 0
    needed: int = 0
    missed: int = 0
    wait_seconds: float = 0.0
    memory_seconds: float = 0.0


def _close(reader: Reader, ring: Ring | None) -> None:
    if ring is not None:
        ring.close()
    reader.close()


class Neurons:
    """The neurons of all layers of a bundle.

    capacity: slots of a layer that stay in memory. frequency: (layers, slots) share of tokens that need each.
    gates: the section with the gates is needed too. sums: uint64 (layers, slots, 2), what is compared when a
    slot is read for the first time. gap: bytes that cost as much as a request of their own. ring: that the
    kernel neuron_fire submits to; without one, fire() has to be called.
    """

    def __init__(
        self, reader: Reader, layout: SlotLayout, sums: np.ndarray, check: Check, capacity: int,
        lists: Lists, gates: bool = False, policy: Policy | None = None, frequency: np.ndarray | None = None,
        gap: int = GAP, ring: Ring | None = None,
    ):  # fmt: skip
        self.reader, self.layout, self.policy = reader, layout, policy or Policy()
        if layout.alignment % reader.alignment:
            raise EdgeError(
                f"{reader.path}: its neurons lie at multiples of {layout.alignment} bytes, but this disk "
                f"reads multiples of {reader.alignment}; pack it here again, or copy it to another disk."
            )
        self._sums, self._check, self._gates = sums, check, gates
        self._sections = 2 if gates else 1
        self.row_bytes = layout.read_bytes(gates)
        self.capacity = min(capacity, layout.slots)
        self.lists, self._gap = lists, gap
        self.stats = NeuronStats()
        self.keepers = [self._keeper(layer, frequency) for layer in range(layout.layers)]
        self._checked = np.zeros((layout.layers, layout.slots), bool)
        self._no_scores = np.zeros(layout.slots)
        step = layout.alignment
        arena = self.capacity * self.row_bytes
        self._arena = reserve(layout.layers * arena + step, huge_pages=True, what="neurons")
        base = align(address(self._arena), step)
        self._arenas = [base + layer * arena for layer in range(layout.layers)]
        staged = self._staging_bytes(layout, self.capacity, self.policy)
        self._staging = reserve(staged + step, huge_pages=True, what="neurons on their way")
        self._staged = align(address(self._staging), step)
        self._tickets: list[Ticket] = []
        self._unchecked: list[tuple[int, np.ndarray, np.ndarray]] = []  # layer, slots, addresses
        self._ring = ring
        self._finalizer = weakref.finalize(self, _close, reader, ring)
        for layer in range(layout.layers):
            self._tell_kernel(layer)
            if ring is not None:
                self.lists.set(layer, FILE=reader.file, **ring.native)

    def _keeper(self, layer: int, frequency: np.ndarray | None) -> Window | Favourites:
        if self.policy.window is not None:
            return Window(self.layout.slots, self.capacity, self.policy.window)
        return Favourites(self.layout.slots, self.capacity, None if frequency is None else frequency[layer])

    def _tell_kernel(self, layer: int) -> None:
        """Fill in what the kernel neuron_fire has to know of a layer."""
        layout, keeper = self.layout, self.keepers[layer]
        gates = {}
        if self._gates:
            gates = {"GATE_OFFSET": layout.section_offset(1), "GATE_BYTES": layout.neuron_bytes(1)}
        self.lists.set(
            layer, PER_SLOT=layout.per_slot, NEURON_BYTES=layout.neuron_bytes(0),
            ROW_OF=address(keeper.row_of), ARENA=self._arenas[layer], ROW_BYTES=self.row_bytes,
            STAGED=self._staged, STRIDE=layout.stride, LAYER_OFFSET=layout.layer_offset(layer),
            SCORES=address(keeper.score if isinstance(keeper, Favourites) else self._no_scores),
            STEP=1.0, BAR=-1.0, CHECKED=address(self._checked[layer]),
            GAP=self._gap if self.policy.merge else -1, **gates,
        )  # fmt: skip

    @staticmethod
    def _staging_bytes(layout: SlotLayout, capacity: int, policy: Policy) -> int:
        """None where every slot stays: a window lets go even of those that there is room for."""
        return layout.layer_bytes if capacity < layout.slots or policy.window is not None else 0

    @staticmethod
    def memory_bytes(layout: SlotLayout, capacity: int, gates: bool, policy: Policy) -> int:
        """What arenas of `capacity` slots, staging and lists take."""
        staging = Neurons._staging_bytes(layout, capacity, policy)
        return layout.layers * capacity * layout.read_bytes(gates) + staging + Lists.nbytes(layout.neurons)

    def load(self) -> None:
        """Fill the arenas with the first slots, which fire most often. Raises EdgeError as reading does."""
        layout = self.layout
        for layer, keeper in enumerate(self.keepers):
            slots = keeper.preload(self.capacity)
            offsets = layout.layer_offset(layer) + slots * layout.stride
            places = self._arenas[layer] + slots * self.row_bytes
            if self.row_bytes == layout.stride and len(slots):
                each = max(1, LONGEST // layout.stride)
                lengths = np.diff(np.append(slots[::each], len(slots))) * layout.stride
                self.reader.read(offsets[::each], lengths, places[::each])
            elif len(slots):
                self.reader.read(offsets, np.full(len(slots), self.row_bytes), places)
            self._verify(layer, slots, places)

    # -- a layer of a step -------------------------------------------------------------------------

    def fire(self, layer: int, many: bool) -> None:
        """The kernel neuron_fire has found out who fires, and does not read by itself: begin to read what is
        not in memory. many: for several tokens, which change nothing of what stays in memory."""
        begin = time.perf_counter()
        lists, keeper = self.lists, self.keepers[layer]
        needed, missing, reads, _, fresh, _ = lists.counts.tolist()
        slots = lists.missing[:missing]
        if isinstance(keeper, Window) and not many:
            slots = self._to_rows(layer, keeper)
        elif self.policy.everything or self.policy.apart:
            self._stage(layer, np.flatnonzero(keeper.row_of < 0) if self.policy.everything else slots)
        elif reads:
            if fresh:
                self._note(layer, slots, None)
            self._read(lists.offsets[:reads], lists.lengths[:reads], lists.places[:reads])
        self._ended(layer, needed, len(slots), many)
        self.stats.memory_seconds += time.perf_counter() - begin

    def arrive(self, layer: int, many: bool) -> None:
        """Return when all that is asked for is in memory. Raises EdgeError where it cannot be read, or is not
        what was packed."""
        begin = time.perf_counter()
        lists, waited = self.lists, 0.0
        if self._ring is not None:
            needed, missing, reads, _, fresh, submitted = lists.counts.tolist()
            if reads:
                self._drain(submitted, reads)
                waited = time.perf_counter() - begin
                self.stats.bytes += int(lists.lengths[:reads].sum())
                self.stats.reads += reads
                if fresh:
                    self._note(layer, lists.missing[:missing], None)
            self._ended(layer, needed, missing, many)
        else:
            while self._tickets:
                self.reader.wait(self._tickets.pop(0))
            waited = time.perf_counter() - begin
        while self._unchecked:
            self._verify(*self._unchecked.pop())
        if not many:
            self._keep(layer)
        self.stats.wait_seconds += waited
        self.stats.memory_seconds += time.perf_counter() - begin - waited

    def _drain(self, submitted: int, reads: int) -> None:
        """Wait for what the kernel has submitted, and read what it had no room for, or what came short."""
        assert self._ring is not None
        lists = self.lists
        again = np.arange(submitted, reads)
        left = submitted
        while left:
            tags, results = self._ring.wait(left)
            tags = tags.astype(np.int64)
            left -= len(tags)
            short = tags[results != lists.lengths[tags]]
            if len(short):
                again = np.concatenate([again, short])
        if len(again):
            self.reader.read(lists.offsets[again], lists.lengths[again], lists.places[again])

    def _ended(self, layer: int, needed: int, missing: int, many: bool) -> None:
        self.stats.needed += needed
        self.stats.missed += missing
        keeper = self.keepers[layer]
        if isinstance(keeper, Favourites) and not many:
            keeper.advance()

    def restart(self) -> None:
        """After a step that broke off: what it was reading is not believed to be in memory. Without a window
        that went to the staging area, and what the arenas hold is whole."""
        if self._ring is not None:
            self._ring.wait(self._ring.in_flight)
        self._tickets, self._unchecked = [], []
        for keeper in self.keepers:
            if isinstance(keeper, Window):
                keeper.forget()

    def close(self) -> None:
        """Wait for what is being read, and close the files."""
        self._finalizer()

    # -- parts -------------------------------------------------------------------------------------

    def _to_rows(self, layer: int, window: Window) -> np.ndarray:
        """Read what a token misses to rows of the arena, and list where everything is now. Returns the
        missing slots."""
        lists, layout = self.lists, self.layout
        slots = lists.needed[: lists.counts[0]]
        change = window.advance(slots)
        for source, target in change.moves.tolist():
            self._move(layer, source, target)
        missing = change.slots
        places = self._arenas[layer] + window.row_of[slots] * self.row_bytes
        staged = missing[len(change.rows) :]  # those that found no room
        places[np.searchsorted(slots, staged)] = self._staged + staged * layout.stride
        self._list(slots, places, missing)
        if len(missing):
            to = places[np.searchsorted(slots, missing)]
            offsets = layout.layer_offset(layer) + missing * layout.stride
            self._note(layer, missing, to)
            self._read(offsets, np.full(len(offsets), self.row_bytes), to)
        return missing

    def _list(self, slots: np.ndarray, places: np.ndarray, missing: np.ndarray) -> None:
        """Fill the lists, of the neurons that the kernel has listed, with the addresses of their slots."""
        layout, lists = self.layout, self.lists
        needed = lists.all[1 : 1 + 2 * lists.all[0] : 2].copy()
        at = np.searchsorted(slots, needed // layout.per_slot)
        bases, within = places[at], needed % layout.per_slot
        absent = np.isin(slots, missing)[at]
        first = bases + within * layout.neuron_bytes(0)
        tell(lists.all, needed, first)
        tell(lists.here, needed[~absent], first[~absent])
        tell(lists.arriving, needed[absent], first[absent])
        if self._gates:
            gates = bases + layout.section_offset(1) + within * layout.neuron_bytes(1)
            tell(lists.gate_here, needed[~absent], gates[~absent])
            tell(lists.gate_arriving, needed[absent], gates[absent])

    def _halves(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths of a request for the rows of up and another one for the columns of down."""
        layout, step = self.layout, self.layout.alignment
        middle = layout.per_slot * layout.neuron_bytes(0) // 2
        start = middle // step * step
        lengths = np.repeat([align(middle, step), self.row_bytes - start], len(offsets))
        return np.concatenate([offsets, offsets + start]), lengths

    def _keep(self, layer: int) -> None:
        """Of what was read for a token, some may stay: they are copied from the staging area to rows that
        this token does not need."""
        lists, keeper = self.lists, self.keepers[layer]
        whole = self.capacity == self.layout.slots  # then nobody ever comes or goes
        if whole or not isinstance(keeper, Favourites) or self.policy.fixed:
            return
        hopeful = int(lists.counts[3])
        if keeper.settles(layer):
            busy = np.sort(lists.needed[: lists.counts[0]])
            slots, rows = keeper.welcome(lists.hopeful[:hopeful], busy)
            if len(slots):
                image = self._image(self._staging, self._staged, self.layout.slots, self.layout.stride)
                arena = self._image(self._arena, self._arenas[layer], self.capacity, self.row_bytes)
                arena[rows] = image[slots, : self.row_bytes]
        lists.scores(layer, keeper.step, keeper.bar)

    @staticmethod
    def _image(memory: np.ndarray, place: int, rows: int, nbytes: int) -> np.ndarray:
        """A view of memory as (rows, bytes), from the address `place` on."""
        begin = place - address(memory)
        return memory[begin : begin + rows * nbytes].reshape(rows, nbytes)

    def _stage(self, layer: int, slots: np.ndarray) -> None:
        """Read slots to their places in the image of the layer."""
        if not len(slots):
            return
        begin, stride = self.layout.layer_offset(layer), self.layout.stride
        self._note(layer, slots, None)
        offsets, lengths = begin + slots * stride, np.full(len(slots), self.row_bytes)
        if self.policy.apart:
            offsets, lengths = self._halves(offsets)
        else:
            offsets, lengths, *_ = merge(offsets, lengths, self._gap)
        self._read(offsets, lengths, self._staged + offsets - begin)

    def _read(self, offsets: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> None:
        self._tickets.append(self.reader.start(offsets, lengths, places, trusted=True))
        self.stats.bytes += int(lengths.sum())
        self.stats.reads += len(lengths)

    def _note(self, layer: int, slots: np.ndarray, places: np.ndarray | None) -> None:
        """Slots that are read for the first time will be checked. places: None for the staging area."""
        new = ~self._checked[layer, slots]
        if new.any():
            fresh = slots[new]
            to = self._staged + fresh * self.layout.stride if places is None else places[new]
            self._unchecked.append((layer, fresh, to))

    def _verify(self, layer: int, slots: np.ndarray, places: np.ndarray) -> None:
        for section in range(self._sections):
            at = places + self.layout.section_offset(section)
            found = self._check(at, self.layout.section_bytes(section) // 8)
            wrong = np.flatnonzero(found != self._sums[layer, slots, section])
            if len(wrong):
                neuron = int(slots[wrong[0]]) * self.layout.per_slot
                raise EdgeError(
                    f"{self.reader.path}: layer {layer}, neuron {neuron} is not what was packed (its "
                    "checksum differs); pack the model again, or copy the bundle from where it is whole."
                )
        self._checked[layer, slots] = True

    def _move(self, layer: int, source: int, target: int) -> None:
        rows = self._image(self._arena, self._arenas[layer], self.capacity, self.row_bytes)
        rows[target] = rows[source]

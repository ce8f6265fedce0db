"""Neurons from flash: those that a token needs and that are not in memory are read, a layer's in one batch.

Each layer has an arena of rows, one for a slot (formats/slots.py), kept by Favourites or by a Window. What
is not to stay there, and the many that a whole prompt needs, goes to the staging area, an image of the layer
as it is in the file, where near neighbours are read in one piece.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable

import numpy as np

from edgellm.errors import EdgeError
from edgellm.flash.counters import NeuronStats
from edgellm.flash.favourites import HYSTERESIS, Favourites
from edgellm.flash.lists import NOBODY, Lists, tell
from edgellm.flash.merge import merge
from edgellm.flash.policies import Policy, Rows
from edgellm.flash.reader import Reader
from edgellm.flash.ticket import Ticket
from edgellm.flash.uring import Ring
from edgellm.flash.window import Window
from edgellm.formats.slots import SlotLayout
from edgellm.kernels.layout import (
    NO_READ,
    TAG_BITS,
    Counts,
    NeuronAhead,
    NeuronCheck,
    NeuronFire,
    NeuronKeep,
    NeuronQueue,
    Totals,
    align,
)
from edgellm.kernels.memory import address, give_back, reserve

GAP = 40 << 10  # bytes between neighbours that are read along, where the device was not measured
LONGEST = 1 << 20  # bytes of a read while the arenas are filled
NUMBER = (1 << TAG_BITS) - 1
OVERFLOWS = 8  # tokens that needed the memory which was lent, until it is lent no more
AREA_SHARE = 16  # of a layer there is room for, when neurons are read for a token
Check = Callable[[int], None]  # a layer: compare its fresh slots' checksums


def _close(reader: Reader, ring: Ring | None) -> None:
    if ring is not None:
        ring.close()
    reader.close()


class Neurons:
    """The neurons of all layers of a bundle.

    rows: slots of a layer that stay in memory. frequency: (layers, slots) share of tokens that need each.
    gates: the section with the gates is needed too. sums: uint64 (layers, slots, 2), what is compared when a
    slot is read for the first time. gap: bytes that cost as much as a request of their own. ring: with which
    kernels read and wait by themselves; without one, fire() and arrive() have to be called. ahead: whether
    they read a layer ahead. give_back: called before rows that were lent are used, after a step of several
    tokens: what only these need is in memory no more.
    """

    def __init__(
        self, reader: Reader, layout: SlotLayout, sums: np.ndarray, check: Check, rows: Rows,
        lists: Lists, gates: bool = False, policy: Policy | None = None, frequency: np.ndarray | None = None,
        gap: int = GAP, ring: Ring | None = None, ahead: bool = False,
        give_back: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.reader, self.layout, self.policy = reader, layout, policy or Policy()
        if layout.alignment % reader.alignment:
            raise EdgeError(
                f"{reader.path}: its neurons lie at multiples of {layout.alignment} bytes, but this disk "
                f"reads multiples of {reader.alignment}; pack it here again, or copy it to another disk."
            )
        self._sums, self._check, self._gates = np.ascontiguousarray(sums, np.uint64), check, gates
        self.row_bytes = layout.read_bytes(gates)
        self.rows, self._give_back, self._lending = rows, give_back, rows.lent > 0
        self._overflows = 0
        self.lists, self._gap = lists, gap
        self._waited = self._moved = 0.0
        self.windows: list[Window] | None = None
        if self.policy.window is not None:
            self.windows = [Window(layout.slots, rows.own, self.policy.window) for _ in range(layout.layers)]
        # Where there are windows it has nothing to keep.
        self.favourites = Favourites(
            layout.layers, layout.slots, 0 if self.windows else rows.all, frequency,
            self.policy.fixed, rows.lent,
        )  # fmt: skip
        self._checked = np.zeros((layout.layers, layout.slots), np.uint8)
        step = layout.alignment
        arena, lent = rows.own * self.row_bytes, rows.lent * self.row_bytes
        self._arena = reserve(layout.layers * arena + step, huge_pages=True, what="neurons")
        base = align(address(self._arena), step)
        self._arenas = [base + layer * arena for layer in range(layout.layers)]
        self._lent = reserve(layout.layers * lent + step, huge_pages=True, what="neurons")
        base = align(address(self._lent), step)
        self._lents = [base + layer * lent for layer in range(layout.layers)]
        staged = self._staging_bytes(layout, rows.own, self.policy)
        self._staging = reserve(staged + step, huge_pages=True, what="neurons of a prompt")
        self._staged = align(address(self._staging), step)
        each = self._landing_bytes(layout, gates) if ahead else 0
        landing = self._landing_bytes(layout, gates) if rows.lent else 0
        self._areas = reserve(landing + 2 * each + step, huge_pages=True, what="neurons on their way")
        self._landing = align(address(self._areas), step)
        lists.set(NeuronFire, lists.fire, LANDING_BYTES=landing)
        self._tickets: list[Ticket] = []
        self._ring = ring
        self._finalizer = weakref.finalize(self, _close, reader, ring)
        for layer in range(layout.layers):
            self._tell_kernels(layer, self._landing + landing + layer % 2 * each, each)
        if ring is not None:
            lists.set(NeuronQueue, lists.queue, FILE=reader.file, **ring.native)

    def _tell_kernels(self, layer: int, area: int, ahead: int) -> None:
        """Fill in what the kernels have to know of a layer. ahead: bytes that it may read ahead, to
        `area`."""
        layout, lists, favourites = self.layout, self.lists, self.favourites
        gates = {}
        if self._gates:
            gates = {"GATE_OFFSET": layout.section_offset(1), "GATE_BYTES": layout.neuron_bytes(1)}
        row_of = address(self.windows[layer].row_of if self.windows else favourites.row_of[layer])
        scores, checked = address(favourites.score[layer]), address(self._checked[layer])
        rows = {"ROW_BYTES": self.row_bytes, "PER_SLOT": layout.per_slot, "ROW_OF": row_of}
        arenas = {"ARENA": self._arenas[layer], "OWN": self.rows.own, "LENT": self._lents[layer]}
        file = {
            "STRIDE": layout.stride, "LAYER_OFFSET": layout.layer_offset(layer),
            "GAP": self._gap if self.policy.merge else -1,
        }  # fmt: skip
        lists.set(
            NeuronFire, lists.fire[layer], NEURON_BYTES=layout.neuron_bytes(0), STAGED=self._staged,
            SCORES=scores, CHECKED=checked, **rows, **arenas, **file, **gates,
        )  # fmt: skip
        lists.set(NeuronAhead, lists.ahead_of[layer], AREA=area, AREA_BYTES=ahead, **rows, **file)
        lists.set(
            NeuronKeep, lists.keep[layer], WEAKEST=address(favourites.weakest[layer]), SCORES=scores,
            POINTER=address(favourites.pointer[layer]), NUM_USED=address(favourites.used[layer:]),
            CAPACITY=favourites.capacity, HYSTERESIS=HYSTERESIS, **rows, **arenas,
        )  # fmt: skip
        more = {}
        if self._gates:
            more = {"MORE": layout.section_offset(1), "MORE_BYTES": layout.section_bytes(1)}
        lists.set(
            NeuronCheck, lists.check[layer], SUMS=address(self._sums[layer]), CHECKED=checked,
            BYTES=layout.section_bytes(0), **more,
        )  # fmt: skip

    @staticmethod
    def _staging_bytes(layout: SlotLayout, capacity: int, policy: Policy) -> int:
        """None where every slot stays: a window lets go even of those that there is room for."""
        return layout.layer_bytes if capacity < layout.slots or policy.window is not None else 0

    @staticmethod
    def _landing_bytes(layout: SlotLayout, gates: bool) -> int:
        row = layout.read_bytes(gates)
        return align(-(-layout.layer_bytes // AREA_SHARE), row)

    @staticmethod
    def memory_bytes(
        layout: SlotLayout, capacity: int, gates: bool, policy: Policy, ahead: bool = False
    ) -> int:
        """What arenas of `capacity` slots, staging and lists take. ahead: neurons are read ahead, and may be
        lent memory."""
        staging = Neurons._staging_bytes(layout, capacity, policy)
        if ahead and staging:
            staging += 3 * Neurons._landing_bytes(layout, gates)
        rows = layout.layers * capacity * layout.read_bytes(gates)
        notes = Favourites.nbytes(layout.layers, layout.slots) + layout.layers * layout.slots  # those checked
        return rows + staging + notes + Lists.nbytes(layout.neurons)

    def load(self) -> None:
        """Fill the arenas with the first slots, which fire most often. Raises EdgeError as reading does."""
        layout = self.layout
        for layer in range(layout.layers):
            if self.windows:
                slots = self.windows[layer].preload(self.rows.own)
            else:
                slots = self.favourites.preload(layer)
            offsets = layout.layer_offset(layer) + slots * layout.stride
            places = np.where(
                slots < self.rows.own,
                self._arenas[layer] + slots * self.row_bytes,
                self._lents[layer] + (slots - self.rows.own) * self.row_bytes,
            )
            if self.row_bytes == layout.stride and len(slots):
                each = max(1, LONGEST // layout.stride)
                firsts = np.union1d(slots[::each], slots[self.rows.own : self.rows.own + 1])
                lengths = np.diff(np.append(firsts, len(slots))) * layout.stride
                self.reader.read(offsets[firsts], lengths, places[firsts])
            elif len(slots):
                self.reader.read(offsets, np.full(len(slots), self.row_bytes), places)
            tell(self.lists.fresh, slots, places)
            self._check(layer)
            self._refuse_wrong()

    # -- a step ------------------------------------------------------------------------------------

    def begin(self, many: bool) -> None:
        """Before a step. many: of several tokens, which change nothing of what stays in memory but for
        taking back what was lent."""
        favourites = self.favourites
        if self.rows.lent:
            self._lend(not many and self._overflows < OVERFLOWS)
        if not many and not self.windows:
            favourites.advance()
        if many:  # nobody may stay
            self.lists.scores(favourites.step, np.full_like(favourites.bars, np.inf))
        else:
            self.lists.scores(favourites.step, favourites.bars)

    def fire(self, layer: int, many: bool) -> None:
        """Without a ring: the kernel neuron_fire has found out who fires; begin to read what is not in
        memory. many: for several tokens."""
        begin = time.perf_counter()
        lists = self.lists
        missing, reads = lists.counts[[Counts.MISSING, Counts.READS]].tolist()
        if self.windows and not many:
            self._to_rows(layer, self.windows[layer])
        elif self.policy.everything or self.policy.apart:
            row_of = self.windows[layer].row_of if self.windows else self.favourites.row_of[layer]
            everything = self.policy.everything
            self._stage(layer, np.flatnonzero(row_of < 0) if everything else lists.missing[:missing])
        elif reads:
            offsets, lengths, places = lists.reads[0, :, :reads]
            self._read(offsets, lengths, places)
        self._moved += time.perf_counter() - begin

    def arrive(self) -> None:
        """Without a ring: return when all that is asked for is in memory. Raises EdgeError where it cannot be
        read."""
        begin = time.perf_counter()
        while self._tickets:
            self.reader.wait(self._tickets.pop(0))
        self._waited += time.perf_counter() - begin

    def mend(self) -> None:
        """A kernel has stopped the step: wait for what it could not wait for, and read again what came short.
        Raises EdgeError where that cannot be read either, or a slot is not what was packed."""
        self._refuse_wrong()
        begin, lists = time.perf_counter(), self.lists
        assert self._ring is not None
        tags = [lists.failed[1 : 1 + lists.failed[0]].copy()]
        while left := int(lists.pending.sum()):
            found, results = self._ring.wait(left)
            found = found.astype(np.int64)
            kinds, numbers = found >> TAG_BITS, found & NUMBER
            lists.pending -= np.bincount(kinds, minlength=len(lists.pending))
            tags.append(found[results != lists.reads[kinds, 1, numbers]])
        again = np.concatenate(tags)
        counts = lists.counts  # of reads, some may not have been started, for want of room
        never = np.arange(counts[Counts.SUBMITTED], counts[Counts.READS])
        counts[Counts.SUBMITTED] = counts[Counts.READS]
        if counts[Counts.UNPLACED] != NO_READ and self._lending:
            self._overflows += 1
            self._take_back(but=int(counts[Counts.LAYER]))
        kinds = np.append(again >> TAG_BITS, np.zeros_like(never))
        numbers = np.append(again & NUMBER, never)
        offsets, lengths, places = lists.reads[kinds, :, numbers].T
        self.reader.read(offsets, lengths, places)
        lists.failed[0] = lists.stops[:] = 0
        self._waited += time.perf_counter() - begin

    def _refuse_wrong(self) -> None:
        layer, slot = self.lists.wrong.tolist()
        if layer != NOBODY:
            self.lists.forget()
            raise EdgeError(
                f"{self.reader.path}: layer {layer}, neuron {slot * self.layout.per_slot} is not what was "
                "packed (its checksum differs); pack the model again, or copy the bundle from where it is "
                "whole."
            )

    @property
    def stats(self) -> NeuronStats:
        """What was read so far."""
        t = self.lists.totals
        return NeuronStats(
            bytes=int(t[Totals.BYTES]), reads=int(t[Totals.READS]), needed=int(t[Totals.NEEDED]),
            missed=int(t[Totals.MISSED]), wait_seconds=t[Totals.WAITED] * 1e-9 + self._waited,
            memory_seconds=t[Totals.BOOKKEEPING] * 1e-9 + self._moved,
            kernel_seconds=(t[Totals.WAITED] + t[Totals.BOOKKEEPING]) * 1e-9,
        )  # fmt: skip

    def restart(self) -> None:
        """After a step that broke off: what it was reading is not believed to be in memory. Without a window
        that did not go to the arenas, and what these hold is whole."""
        if self._ring is not None:
            while self._ring.in_flight:
                self._ring.wait(self._ring.in_flight)
        self._tickets = []
        self.lists.forget()
        for window in self.windows or ():
            window.forget()

    def close(self) -> None:
        """Wait for what is being read, and close the files."""
        self._finalizer()

    # -- memory that prompts need --------------------------------------------------------------------

    def _lend(self, now: bool) -> None:
        """Whether rows are lent. They are empty at first: who is missing comes to stay."""
        lists = self.lists
        lists.set(NeuronFire, lists.fire, LANDING=self._landing if now else 0)
        if not now and (self.favourites.used > self.rows.own).any():
            self._take_back()
        elif now and not self._lending:
            give_back(self._staging)
            self._give_back()
            lists.set(NeuronKeep, lists.keep, CAPACITY=self.rows.all)
            self._lending = True

    def _take_back(self, but: int | None = None) -> None:
        """Empty what was lent. but: to this layer, of which a step has begun."""
        own, lents = self.rows.own, self._lent[self._lents[0] - address(self._lent) :]
        self.favourites.vacate(own, but)
        each = self.rows.lent * self.row_bytes
        if but is None:
            give_back(lents)
        else:
            give_back(lents[: but * each])
            give_back(lents[(but + 1) * each :])
        self.lists.set(NeuronKeep, self.lists.keep, CAPACITY=own)
        self._lending = False

    # -- parts -------------------------------------------------------------------------------------

    def _to_rows(self, layer: int, window: Window) -> None:
        """Read what a token misses to rows of the arena, and list where everything is now."""
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
        to = places[np.searchsorted(slots, missing)]
        new = self._checked[layer, missing] == 0
        tell(lists.fresh, missing[new], to[new])
        if len(missing):
            offsets = layout.layer_offset(layer) + missing * layout.stride
            self._read(offsets, np.full(len(offsets), self.row_bytes), to)

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
        offsets, lengths = begin + slots * stride, np.full(len(slots), self.row_bytes)
        if self.policy.apart:
            offsets, lengths = self._halves(offsets)
        else:
            offsets, lengths, *_ = merge(offsets, lengths, self._gap)
        self._read(offsets, lengths, self._staged + offsets - begin)

    def _read(self, offsets: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> None:
        self._tickets.append(self.reader.start(offsets, lengths, places, trusted=True))
        totals = self.lists.totals
        totals[Totals.BYTES] += int(lengths.sum())
        totals[Totals.READS] += len(lengths)

    def _move(self, layer: int, source: int, target: int) -> None:
        rows = self._image(self._arena, self._arenas[layer], self.rows.own, self.row_bytes)
        rows[target] = rows[source]

"""Weights that come from flash in a fixed order, again and again: a ring of slots that is always filling.

The order of reads is that of the instructions, so the next token's first weights are read while the last
ones of this token are computed with. A read begins as soon as its slot is free.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.errors import EdgeError
from edgellm.flash.reader import Reader
from edgellm.flash.ticket import Ticket
from edgellm.kernels.layout import align
from edgellm.kernels.memory import address, reserve


@dataclass
class RingStats:
    """bytes and requests that were read; seconds that computation waited for them."""

    bytes: int = 0
    reads: int = 0
    wait_seconds: float = 0.0


class Ring:
    """units: (offset, bytes) of the reads, in order. Unit u is at addresses[u] between wait() and release().

    The alternation is the caller's: wait() for as many units as the ring holds, then release() as many.
    """

    def __init__(self, reader: Reader, units: Sequence[tuple[int, int]], slots: int, slot_bytes: int):
        self._reader, self.slots = reader, slots
        step = reader.alignment
        slot_bytes = align(slot_bytes, step)
        self.memory = reserve(slots * slot_bytes + step, huge_pages=True, what="weights on their way")
        base = align(address(self.memory), step)
        self._reads: list[tuple[int, int, int]] = []  # offset, length, address
        self.addresses: list[int] = []
        for u, (offset, nbytes) in enumerate(units):
            start = offset // step * step
            length = align(offset + nbytes, step) - start
            if length > slot_bytes:
                raise ValueError(f"unit {u} takes {length} bytes of a slot of {slot_bytes}")
            slot = base + u % slots * slot_bytes
            self._reads.append((start, length, slot))
            self.addresses.append(slot + offset - start)
        self._begun = self._waited = self._released = 0  # units so far, all rounds counted
        self._busy: set[int] = set()  # slots
        self._tickets: deque[Ticket] = deque()
        self.stats = RingStats()

    def fill(self) -> None:
        """Begin as many reads as there are free slots."""
        count = len(self._reads)
        while count:
            unit = self._begun % count
            slot = unit % self.slots
            if slot in self._busy:
                return
            offset, length, to = self._reads[unit]
            self._busy.add(slot)
            self._tickets.append(self._reader.start(offset, length, to))
            self._begun += 1
            self.stats.bytes += length
            self.stats.reads += 1

    def wait(self) -> None:
        """Return when the next unit is in memory. Raises EdgeError where it cannot be read."""
        if self._waited == self._begun:
            self.fill()
        if self._waited == self._begun:
            raise ValueError("every slot of the ring is held")
        begin = time.perf_counter()
        self._reader.wait(self._tickets[0])
        self._tickets.popleft()
        self._waited += 1
        self.stats.wait_seconds += time.perf_counter() - begin

    def release(self) -> None:
        """The oldest unit that was waited for is not needed any more."""
        self._busy.remove(self._released % len(self._reads) % self.slots)
        self._released += 1
        self.fill()

    def restart(self) -> None:
        """Begin with the first unit again, whatever was in between."""
        self.drain()
        self._begun = self._waited = self._released = 0
        self._busy.clear()

    def drain(self) -> None:
        """Wait for what is being read; what went wrong with it does not matter any more."""
        while self._tickets:
            with contextlib.suppress(EdgeError):
                self._reader.wait(self._tickets.popleft())

"""Reading pieces of a file into memory of the caller's, while the caller computes."""

from __future__ import annotations

import errno
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from edgellm.errors import EdgeError
from edgellm.flash.files import UNTOLD_ALIGNMENT, identity, open_to_read
from edgellm.flash.pool import Pool
from edgellm.flash.ticket import Ticket
from edgellm.flash.uring import DEEPEST, Ring, UringRefused

EngineName = Literal["uring", "threads"]
# Measured on one virtio disk; edgellm.flash.device measures yours.
DEPTH = 128  # 4 KiB reads cost a fifth less processor time each than with 32 in flight; with 256 no less
THREADS = 32  # with 16 reads of 4 KiB took a tenth longer
LONGEST = 1 << 20  # bytes; longer reads were no faster
LONGEST_CUT = 1 << 30  # the kernel ends a read before 2 GiB
TAG_BITS = 32  # of a tag's 64 for the part, the others for the ticket


class Engine(Protocol):
    """What starts reads and tells which have finished: uring.Ring or pool.Pool."""

    @property
    def room(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    def submit(
        self, fd: int, offsets: np.ndarray, lengths: np.ndarray, addresses: np.ndarray, tags: np.ndarray
    ) -> None: ...
    def wait(self, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]: ...
    def close(self) -> None: ...


class Reader:
    """Reads pieces of one file into memory that the caller owns.

    start() takes a batch and returns at once, poll() tells what has arrived, wait() is for a whole batch.
    Reads go past the page cache (O_DIRECT) where the file system can; then offsets, lengths and addresses are
    multiples of `alignment`. The memory must live until the batch has settled or close() has returned. One
    thread at a time may use a Reader; while it waits, Python's global lock is free.

    depth: requests in flight at most, with io_uring; more wait here for the next call. threads: as many read
    where there is no io_uring. longest: bytes; longer requests are cut. Memory of huge pages
    (kernels.memory.reserve) doubles the speed of long reads.
    Raises EdgeError where the file cannot be opened, or the engine that was asked for is not to be had.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        direct: bool = True,
        depth: int = DEPTH,
        threads: int = THREADS,
        engine: EngineName | None = None,
        longest: int = LONGEST,
    ):
        self.path = Path(path)
        if not 1 <= depth <= DEEPEST or threads < 1:
            raise EdgeError(f"A reader has 1 to {DEEPEST} requests in flight and at least 1 thread.")
        self._fd, self.alignment, self._buffered = open_to_read(self.path, direct)
        try:
            status = os.fstat(self._fd)
            self._identity, self.size = identity(status), status.st_size
            if not 1 <= longest <= LONGEST_CUT or longest % self.alignment:
                raise EdgeError(
                    f"{self.path}: reads are cut into multiples of {self.alignment} bytes, 1 GiB at most, "
                    f"not {longest}."
                )
            self._engine: Engine
            self.kind: EngineName
            self._engine, self.kind, self._how = _engine(engine, depth, threads)
        except BaseException:
            os.close(self._fd)
            raise
        self.direct = not self._buffered
        self._longest = longest
        self._batch = max(1, depth // 4)  # completions drained together while more requests wait their turn
        self._tickets: dict[int, Ticket] = {}  # those not settled, by their number in the tags
        self._waiting: deque[int] = deque()  # tickets with parts that were never submitted
        self._again: deque[tuple[int, int]] = deque()  # (ticket, part) of which a piece is missing
        self._fresh: dict[Ticket, list[np.ndarray]] = {}  # requests that poll() has not reported
        self._failed: list[Ticket] = []  # settled with an error that was not raised yet
        self._count = 0
        # Also when it is collected or Python ends: nobody must write into memory that has been freed.
        self._finalizer = weakref.finalize(self, _close, self._engine, self._fd)

    @property
    def file(self) -> int:
        """The file descriptor that is read from."""
        return self._fd

    @property
    def engine(self) -> str:
        """Who reads and how, in words, with the reason where it is not the fastest way."""
        return f"{self._how}, {self._buffered or 'past the page cache (O_DIRECT)'}"

    def start(
        self, offsets: ArrayLike, lengths: ArrayLike, addresses: ArrayLike, *, trusted: bool = False
    ) -> Ticket:
        """Begin to read `lengths` bytes at `offsets` of the file to `addresses`; integers, (n,) each, or one.

        The last request of a file may go on to the next multiple of 4096; the memory for what lies beyond the
        file stays as it is. Raises EdgeError if one is not aligned or not in the file; then none is read.
        trusted: the caller has seen to it that all are.
        """
        spans = [np.array(a, np.int64).reshape(-1) for a in (offsets, lengths, addresses)]
        if trusted:
            self._check_open()
        else:
            self._check(*spans)
        ticket = Ticket(spans[0], spans[1], spans[2], self._longest, self.size)
        if ticket.left:
            self._count += 1
            self._tickets[self._count] = ticket
            self._waiting.append(self._count)
            self._refill()
        return ticket

    def _check(self, offsets: np.ndarray, lengths: np.ndarray, addresses: np.ndarray) -> None:
        self._check_open()
        if not len(offsets) == len(lengths) == len(addresses):
            raise EdgeError(f"{self.path}: each request needs an offset, a length and an address.")
        if self.alignment > 1 and ((offsets | lengths | addresses) % self.alignment).any():
            raise EdgeError(
                f"{self.path}: reads past the page cache need offsets, lengths and addresses that are "
                f"multiples of {self.alignment}."
            )
        end = -(-self.size // UNTOLD_ALIGNMENT) * UNTOLD_ALIGNMENT
        outside = (offsets < 0) | (lengths < 1) | (lengths > end - offsets)
        if outside.any():
            i = int(np.argmax(outside))
            raise EdgeError(
                f"{self.path}: {lengths[i]} bytes at byte {offsets[i]} are not in this file of {self.size}."
            )

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise EdgeError(f"{self.path}: the reader of this file was closed.")

    def wait(self, ticket: Ticket) -> None:
        """Return when the whole batch is in memory. Raises EdgeError if some of it could not be read."""
        while not ticket.settled:
            # All at once, unless others wait for their turn: the device must not run dry.
            self._drain(max(1, min(ticket.flying, self._batch) if self._waiting else ticket.flying))
        self._fresh.pop(ticket, None)
        if ticket.error is not None:
            self._failed = [failed for failed in self._failed if failed is not ticket]
            raise ticket.error

    def poll(self, at_least: int = 0) -> list[tuple[Ticket, np.ndarray]]:
        """What has arrived and was not reported before: batches, and which of their requests, in any order.

        Waits for `at_least` requests, or for all that are under way if they are fewer. Raises EdgeError when
        a batch has failed, once for each.
        """
        self._drain(0)
        while self._tickets and not self._failed and self._unreported() < at_least:
            self._drain(min(self._batch, at_least - self._unreported()))
        if self._failed:
            ticket = self._failed.pop(0)
            self._fresh.pop(ticket, None)
            raise ticket.error or AssertionError("a failed ticket has an error")
        found = [(ticket, np.concatenate(pieces)) for ticket, pieces in self._fresh.items()]
        self._fresh = {}
        return found

    def _unreported(self) -> int:
        return sum(len(piece) for pieces in self._fresh.values() for piece in pieces)

    def read(self, offsets: ArrayLike, lengths: ArrayLike, addresses: ArrayLike) -> None:
        """start() and wait()."""
        self.wait(self.start(offsets, lengths, addresses))

    def check_unchanged(self) -> None:
        """Raise EdgeError unless the path still names the file that was opened, as it was then."""
        try:
            unchanged = identity(os.stat(self.path)) == self._identity
        except OSError:
            unchanged = False
        if not unchanged:
            raise EdgeError(f"{self.path}: was replaced or changed while it was read; start again.")

    def close(self) -> None:
        """Wait for what is in flight, drop the rest, close the file. Does nothing the second time."""
        self._finalizer()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refill(self) -> None:
        """Submit what waits, as far as there is room: first what was begun, then in order."""
        while self._again and self._engine.room:
            number, part = self._again.popleft()
            self._submit(number, np.array([part]))
        while self._waiting and (room := self._engine.room):
            ticket = self._tickets.get(self._waiting[0])
            parts = np.arange(0) if ticket is None else ticket.take(room)
            if len(parts):
                self._submit(self._waiting[0], parts)
            if ticket is None or ticket.next == len(ticket.offsets):
                self._waiting.popleft()

    def _submit(self, number: int, parts: np.ndarray) -> None:
        ticket = self._tickets[number]
        spans = ticket.offsets[parts], ticket.lengths[parts], ticket.addresses[parts]
        try:
            self._engine.submit(self._fd, *spans, parts | (number << TAG_BITS))
        except OSError as error:
            raise self._refused(error) from None

    def _drain(self, at_least: int) -> None:
        """Take in what has finished, after waiting for `at_least` requests, and submit what waits."""
        self._check_open()
        try:
            tags, results = self._engine.wait(at_least)
        except OSError as error:
            raise self._refused(error) from None
        tags = tags.astype(np.int64)
        numbers, parts = tags >> TAG_BITS, tags & ((1 << TAG_BITS) - 1)
        for number in set(numbers.tolist()):
            mine = numbers == number
            self._absorb(number, parts[mine], results[mine])
        self._refill()
        if self._engine.in_flight == 0:  # a part still counted was lost when an exception interrupted us
            for number, ticket in list(self._tickets.items()):
                if ticket.flying:
                    ticket.flying = 0
                    ticket.fail(EdgeError(f"{self.path}: reading it was interrupted; start again."))
                    self._settle(number)

    def _absorb(self, number: int, parts: np.ndarray, results: np.ndarray) -> None:
        ticket = self._tickets[number]
        short = results < ticket.needed[parts]
        if short.any():
            for part, result in zip(parts[short].tolist(), results[short].tolist(), strict=True):
                self._continue(number, part, result)
            parts = parts[~short]
        ticket.flying -= len(parts)
        done = ticket.arrive(parts)
        if len(done):
            self._fresh.setdefault(ticket, []).append(done)
        self._settle(number)

    def _continue(self, number: int, part: int, result: int) -> None:
        """A part came short: read its rest, or note why that is not possible. result: bytes or -errno."""
        ticket = self._tickets[number]
        got = max(0, result) // self.alignment * self.alignment  # from where a direct read can go on
        if got or -result in (errno.EAGAIN, errno.EINTR):
            ticket.advance(part, got)
            self._again.append((number, part))
            return
        ticket.flying -= 1
        offset = int(ticket.offsets[part])
        if result >= 0:
            reason = (
                f"ends at byte {offset + result} where it had {self.size} bytes; it was cut or replaced "
                "while it was read, start again"
            )
        else:
            reason = (
                f"{ticket.lengths[part]} bytes at byte {offset} cannot be read "
                f"({os.strerror(-result).lower()}); check the disk, or copy the file to another one"
            )
        ticket.fail(EdgeError(f"{self.path}: {reason}."))

    def _settle(self, number: int) -> None:
        ticket = self._tickets[number]
        if ticket.settled:
            del self._tickets[number]
            if ticket.error is not None:
                self._failed.append(ticket)

    def _refused(self, error: OSError) -> EdgeError:
        return EdgeError(f"{self.path}: the system takes no requests to read it ({error.strerror or error}).")


def _engine(wanted: EngineName | None, depth: int, threads: int) -> tuple[Engine, EngineName, str]:
    """The engine, its kind, and what to call it."""
    if wanted not in (None, "uring", "threads"):
        raise EdgeError(f"There is no engine '{wanted}': a reader has uring or threads.")
    why = ""
    if wanted != "threads":
        try:
            return Ring(depth), "uring", "io_uring"
        except UringRefused as refusal:
            if wanted == "uring":
                raise EdgeError(f"io_uring {refusal}; read with threads.") from None
            why = f" (io_uring {refusal})"
    return Pool(threads), "threads", f"{threads} thread{'s' if threads > 1 else ''}{why}"


def _close(engine: Engine, fd: int) -> None:
    try:
        engine.close()
    finally:
        os.close(fd)

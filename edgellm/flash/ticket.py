"""A batch of reads and what has become of each."""

from __future__ import annotations

import numpy as np

from edgellm.errors import EdgeError


class Ticket:
    """One batch of n requests on their way, as Reader.start() returns it.

    arrived: (n,) bool, which of them are in memory. The Reader's poll() and wait() change it, nothing else.
    The rest is the Reader's: requests are cut into parts of at most `longest` bytes, numbered through.
    """

    def __init__(
        self, offsets: np.ndarray, lengths: np.ndarray, addresses: np.ndarray, longest: int, size: int
    ):
        """Arrays are (n,) of int64 and become the ticket's. size: bytes of the file."""
        count = len(offsets)
        self.arrived = np.zeros(count, bool)
        self.error: EdgeError | None = None
        self._request: np.ndarray | None = None  # (parts,), the request of each part, if any has several
        pieces = -(-lengths // longest)
        if (pieces > 1).any():
            self._request = request = np.repeat(np.arange(count), pieces)
            self._pieces_left = pieces
            skip = (np.arange(len(request)) - (np.cumsum(pieces) - pieces)[request]) * longest
            offsets, addresses = offsets[request] + skip, addresses[request] + skip
            lengths = np.minimum(lengths[request] - skip, longest)
        self.offsets, self.lengths, self.addresses = offsets, lengths, addresses  # (parts,)
        self.needed = np.minimum(lengths, size - offsets)  # the last ones may go on beyond the file
        self.next = 0  # parts from here on were never submitted
        self.left = len(self.offsets)  # parts that are not in memory
        self.flying = 0  # parts submitted and not drained

    @property
    def settled(self) -> bool:
        """All is in memory; or there was an error, and nothing is in flight any more."""
        return self.flying == 0 and (self.left == 0 or self.error is not None)

    def take(self, room: int) -> np.ndarray:
        """At most `room` parts that were never submitted, now counted as in flight."""
        first = self.next
        self.next = min(first + room, len(self.offsets))
        self.flying += self.next - first
        return np.arange(first, self.next)

    def arrive(self, parts: np.ndarray) -> np.ndarray:
        """Note that these parts are in memory; returns the requests that this completed."""
        self.left -= len(parts)
        done = parts
        if self._request is not None:
            requests = self._request[parts]
            np.subtract.at(self._pieces_left, requests, 1)
            requests = np.unique(requests)
            done = requests[self._pieces_left[requests] == 0]
        self.arrived[done] = True
        return done

    def advance(self, part: int, nbytes: int) -> None:
        """Note that the first `nbytes` of a part are in memory and only the rest is wanted."""
        self.offsets[part] += nbytes
        self.addresses[part] += nbytes
        self.lengths[part] -= nbytes
        self.needed[part] -= nbytes

    def fail(self, error: EdgeError) -> None:
        """Note the error, unless there is one; parts that were never submitted never will be."""
        self.error = self.error or error
        self.next = len(self.offsets)

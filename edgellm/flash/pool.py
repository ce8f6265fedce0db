"""Reads by a pool of Python threads, where io_uring is not to be had; the interface is uring.Ring's."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from queue import Empty, SimpleQueue

import numpy as np

Request = tuple[int, int, int, int, int]  # tag, file, offset, length, address


class Pool:
    """A queue of reads, `threads` of them at the device at a time; any number may be queued.

    One thread at a time may use it. The memory that requests name must live until they are drained, or until
    close() has returned.
    """

    room = sys.maxsize  # what waits its turn is kept here, so that it starts without the caller's help

    def __init__(self, threads: int):
        self.threads = threads
        self.in_flight = 0  # submitted and not drained
        self._todo: SimpleQueue[Request | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._found: list[tuple[int, int]] = []  # outlives an interrupted wait
        self._workers = [
            threading.Thread(
                target=_work, args=(self._todo, self._done), name=f"edgellm-read-{i}", daemon=True
            )
            for i in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self, fd: int, offsets: np.ndarray, lengths: np.ndarray, addresses: np.ndarray, tags: np.ndarray
    ) -> None:
        """Start n reads: `lengths` bytes at `offsets` of the open file `fd`, to `addresses`; arrays (n,)."""
        self.in_flight += len(offsets)
        for tag, offset, length, address in zip(
            tags.tolist(), offsets.tolist(), lengths.tolist(), addresses.tolist(), strict=True
        ):
            self._todo.put((tag, fd, offset, length, address))

    def wait(self, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tags, results) of what has finished, after waiting for `at_least` requests, or all in flight.

        tags: (n,) uint64. results: (n,) int64, the bytes read, or -errno. 0 does not wait.
        """
        found, wanted = self._found, min(at_least, self.in_flight)
        while len(found) < wanted:
            found.append(self._done.get())
        try:
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            pass
        self._found = []
        self.in_flight -= len(found)
        return np.array([tag for tag, _ in found], np.uint64), np.array([n for _, n in found], np.int64)

    def close(self) -> None:
        """Drop what has not begun, wait for what has, end the threads."""
        try:
            while True:
                self._todo.get_nowait()
        except Empty:
            pass
        for _ in self._workers:
            self._todo.put(None)
        for worker in self._workers:
            worker.join()
        self._workers, self.in_flight = [], 0


def _work(todo: SimpleQueue[Request | None], done: SimpleQueue[tuple[int, int]]) -> None:
    while (request := todo.get()) is not None:
        tag, fd, offset, length, address = request
        result = -errno.EIO  # a fault that is not the system's still ends the request: nobody waits for ever
        try:
            memory = (ctypes.c_ubyte * length).from_address(address)
            result = os.preadv(fd, [memory], offset)  # without Python's global lock
        except OSError as error:
            result = -(error.errno or errno.EIO)
        finally:
            done.put((tag, result))

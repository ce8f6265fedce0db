"""io_uring by ctypes and NumPy: many reads handed to the Linux kernel by one system call.

Two rings in memory are shared with the kernel (man 7 io_uring). We write requests, 64 bytes each, into the
submission ring and one io_uring_enter starts them all; the kernel writes 16 bytes for each that has finished
into the completion ring. Both rings are NumPy arrays here, so a batch costs a fixed number of array
assignments however many requests it has.

Each ring has a head and a tail, 32-bit counters that wrap: entries from head up to tail are filled. We move
the tail of submissions and the head of completions, the kernel the other two.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Callable

import numpy as np

SETUP, ENTER = 425, 426  # system call numbers, the same on x86-64 and aarch64
GETEVENTS = 1  # io_uring_enter waits for completions
COOP_TASKRUN = 1 << 8  # Linux 5.19: no interrupt of this thread per completion; 5 to 10 % less processor time
FEATURE_SINGLE_MMAP, FEATURE_RW_CUR_POS = 1 << 0, 1 << 3  # the second came with IORING_OP_READ, Linux 5.6
OP_READ = 22
AT_ENTRIES = 0x10000000  # where mmap finds the submission entries
DEEPEST = 4096  # requests in flight; the kernel's own limit is 32768
WRAP = 0xFFFFFFFF

# struct io_uring_params: 10 words of its own, then the offsets of what is in the two rings, 10 words each
PARAMS_WORDS, FLAGS, FEATURES, SQ_OFFSETS, CQ_OFFSETS = 30, 2, 5, 10, 20

SUBMISSION = np.dtype(
    {
        "names": ["opcode", "fd", "offset", "address", "length", "tag"],
        "formats": ["u1", "i4", "u8", "u8", "u4", "u8"],
        "offsets": [0, 4, 8, 16, 24, 32],
        "itemsize": 64,
    }
)
COMPLETION = np.dtype([("tag", "u8"), ("result", "i4"), ("flags", "u4")])


class UringRefused(Exception):
    """There is no io_uring for this process; the message says why, to follow "io_uring"."""


class Ring:
    """A queue of reads in the kernel, `depth` of them in flight at most.

    One thread at a time may use it. The memory that requests name must live until they are drained, or until
    close() has returned. Raises UringRefused where the kernel has no io_uring, or grants none.
    """

    def __init__(self, depth: int):
        if not 1 <= depth <= DEEPEST:
            raise ValueError(f"a ring takes 1 to {DEEPEST} requests, not {depth}")
        self.depth = depth
        self._syscall = _syscall()
        params = np.zeros(PARAMS_WORDS, np.uint32)
        self._fd = self._setup(depth, params)
        try:
            if not params[FEATURES] & FEATURE_SINGLE_MMAP or not params[FEATURES] & FEATURE_RW_CUR_POS:
                raise UringRefused("lacks plain reads before Linux 5.6")
            self._map(params)
        except BaseException:
            os.close(self._fd)
            raise

    def _setup(self, depth: int, params: np.ndarray) -> int:
        for flags in (COOP_TASKRUN, 0):
            params[:] = 0
            params[FLAGS] = flags
            fd = self._syscall(SETUP, depth, params.ctypes.data, 0, 0, 0, 0)
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code != errno.EINVAL:  # an older kernel does not know the flag
                break
        raise UringRefused(_REFUSALS.get(code, f"was refused by the kernel ({os.strerror(code)})"))

    def _map(self, params: np.ndarray) -> None:
        """Map the rings and the submission entries; every view of them is made here, once."""
        entries, completions = int(params[0]), int(params[1])
        heads = [int(offset) for offset in params]
        slots, ready = heads[SQ_OFFSETS + 6], heads[CQ_OFFSETS + 5]
        nbytes = max(slots + 4 * entries, ready + COMPLETION.itemsize * completions)
        shared = {"flags": mmap.MAP_SHARED, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        self._rings = mmap.mmap(self._fd, nbytes, **shared)
        self._entries = mmap.mmap(self._fd, SUBMISSION.itemsize * entries, offset=AT_ENTRIES, **shared)
        self._words = np.frombuffer(self._rings, np.uint32, nbytes // 4)
        self._words[slots // 4 : slots // 4 + entries] = np.arange(entries)  # slot i names entry i, for good
        submission = np.frombuffer(self._entries, SUBMISSION)  # (entries,)
        submission["opcode"] = OP_READ  # the kernel never writes here, so this too stays
        self._submission = {name: submission[name] for name in SUBMISSION.names or ()}
        completion = np.frombuffer(self._rings, COMPLETION, completions, ready)  # (completions,)
        self._tags, self._results = completion["tag"], completion["result"]
        self._mask, self._completion_mask = entries - 1, completions - 1  # both are powers of two
        self._sq_head, self._sq_tail = heads[SQ_OFFSETS] // 4, heads[SQ_OFFSETS + 1] // 4
        self._cq_head, self._cq_tail = heads[CQ_OFFSETS] // 4, heads[CQ_OFFSETS + 1] // 4

    @property
    def native(self) -> dict[str, int]:
        """What compiled code needs to use the rings by itself, as kernels/neuron_queue.py does: fields of
        layout.NeuronQueue."""
        words = self._words.ctypes.data
        return {
            "DEPTH": self.depth, "RING": self._fd, "ENTRIES": self._submission["opcode"].ctypes.data,
            "WRAP": self._mask, "HEAD": words + 4 * self._sq_head, "TAIL": words + 4 * self._sq_tail,
            "DONE": self._tags.ctypes.data, "DONE_WRAP": self._completion_mask,
            "DONE_HEAD": words + 4 * self._cq_head, "DONE_TAIL": words + 4 * self._cq_tail,
        }  # fmt: skip

    @property
    def in_flight(self) -> int:
        """Requests submitted and not drained. Read off the rings, so an exception cannot make it wrong."""
        return (self._word(self._sq_tail) - self._word(self._cq_head)) & WRAP

    @property
    def room(self) -> int:
        """Requests that submit() takes now."""
        return self.depth - self.in_flight

    def submit(
        self, fd: int, offsets: np.ndarray, lengths: np.ndarray, addresses: np.ndarray, tags: np.ndarray
    ) -> None:
        """Start n <= room reads: `lengths` bytes at `offsets` of the open file `fd`, to `addresses`.

        Arrays are (n,) of integers; lengths are below 2 GiB. wait() returns a request's tag, any 64 bits,
        with its result. Raises OSError where the kernel takes no requests at all.
        """
        n = len(offsets)
        if n > self.room:
            raise ValueError(f"{n} requests where there is room for {self.room}")
        tail = self._word(self._sq_tail)
        at = np.arange(tail, tail + n) & self._mask
        entry = self._submission
        entry["fd"][at] = fd
        entry["offset"][at] = offsets
        entry["length"][at] = lengths
        entry["address"][at] = addresses
        entry["tag"][at] = tags
        # No barrier on any architecture: without a polling thread of the kernel's, the entries are read in
        # the system call below, by this thread, which sees its own stores in order.
        self._words[self._sq_tail] = (tail + n) & WRAP
        self._flush()

    def _flush(self) -> None:
        """Make the kernel take every request that is in the submission ring."""
        while left := (self._word(self._sq_tail) - self._word(self._sq_head)) & WRAP:
            finished = self._ready()
            try:
                self._enter(left, 0)
            except BlockingIOError:  # no memory for more requests, until one that runs is finished
                if self.in_flight - left == finished:
                    raise
                self._enter(0, finished + 1)

    def wait(self, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tags, results) of what has finished, after waiting for `at_least` requests, or all in flight.

        tags: (n,) uint64. results: (n,) int32, the bytes read, or -errno. 0 does not wait. Python's global
        lock is free while this waits.
        """
        self._flush()  # what an exception kept from being submitted
        in_flight = self.in_flight
        wanted = min(at_least, in_flight)
        while in_flight and self._ready() < max(wanted, 1):
            self._enter(0, wanted)
            if not wanted:
                break
        head, tail = self._word(self._cq_head), self._word(self._cq_tail)
        count = (tail - head) & WRAP
        # The kernel may have written these entries, and then the tail, on another processor. x86 keeps loads
        # in order. aarch64 keeps a load behind those that its address was computed from: here the tail.
        at = np.arange(tail - count, tail) & self._completion_mask
        tags, results = self._tags[at], self._results[at]
        # The entries may be given back without a barrier too: the ring is twice as long as what can be in
        # flight, so none is written again before requests that a later system call submits.
        self._words[self._cq_head] = tail
        return tags, results

    def _word(self, index: int) -> int:
        """One head or tail: an aligned 32-bit load, which no processor tears."""
        return int(self._words[index])

    def _ready(self) -> int:
        return (self._word(self._cq_tail) - self._word(self._cq_head)) & WRAP

    def _enter(self, submit: int, wanted: int) -> None:
        """One io_uring_enter. Interrupted by a signal it returns early, for Python to run its handlers."""
        if self._syscall(ENTER, self._fd, submit, wanted, 0 if submit else GETEVENTS, 0, 0) < 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Wait for what the kernel has begun and give the rings back. Does nothing the second time."""
        if self._fd < 0:
            return
        while (begun := (self._word(self._sq_head) - self._word(self._cq_head)) & WRAP) > self._ready():
            self._enter(0, begun)
        fd, self._fd = self._fd, -1
        del self._words, self._submission, self._tags, self._results  # views keep a mapping open
        self._rings.close()
        self._entries.close()
        os.close(fd)


_REFUSALS = {
    errno.ENOSYS: "is not in this kernel",
    errno.EPERM: "is not permitted here (by the container, or by the sysctl kernel.io_uring_disabled)",
    errno.EACCES: "is not permitted here (by a security policy)",
    errno.ENOMEM: "gets no memory here (see ulimit -l)",
}


def _syscall() -> Callable[..., int]:
    """libc's syscall(), which releases Python's global lock."""
    if not sys.platform.startswith("linux"):
        raise UringRefused("is Linux's alone")
    if hasattr(sys, "getandroidapilevel"):
        raise UringRefused("is forbidden on Android, which ends programs that try it")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise UringRefused(f"is not supported on {platform.machine()} here")
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = [ctypes.c_long] * 7
    return call

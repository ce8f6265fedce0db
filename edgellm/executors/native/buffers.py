"""The activations' memory, and who may touch it when."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.kernels.layout import ActLayout, align
from edgellm.kernels.memory import address, give_back, reserve


@dataclass(frozen=True)
class Buffer:
    """Rows of `stride` bytes at `address`. private: with a lone token, row i is thread i's own copy."""

    key: str
    address: int
    width: int
    stride: int
    private: bool = False


class Workspace:
    """Named buffers of `rows` rows. Address space is reserved; pages come when rows are used. threads: what a
    lone token's private rows are for."""

    def __init__(self, rows: int, threads: int):
        self.rows, self.threads = max(rows, threads), threads
        self.nbytes = 0
        self._memory: dict[str, np.ndarray] = {}
        self._lone: dict[str, int] = {}  # bytes that a lone token needs
        self._current: dict[str, Buffer] = {}

    def __getitem__(self, name: str) -> Buffer:
        return self._current[name]

    def buffer(self, name: str, width: int, private: bool = False, lone: bool = False) -> Buffer:
        """Buffer `name` for writing; from now on the name means it. Private and shared content never share
        memory: another thread may still read its private copy while the next op writes. lone: for a lone
        token alone."""
        stride = align(4 * width)
        key = f"{name}{'~' if private else ''}{'!' if lone else ''}/{stride}"
        buffer = Buffer(key, self._area(key, stride, lone), width, stride, private)
        self._current[name] = buffer
        return buffer

    def activation(self, width: int, lone: bool = False) -> Buffer:
        """The quantised row of inputs of this width; always private. lone: as of buffer(), another one."""
        stride, key = ActLayout(width).stride, f"act{'!' if lone else ''}/{width}"
        return Buffer(key, self._area(key, stride, lone), width, stride, private=True)

    def array(self, buffer: Buffer, rows: int) -> np.ndarray:
        """(rows, width) float32 view of a buffer."""
        memory = self._memory[buffer.key][: rows * buffer.stride]
        return memory.view(np.float32).reshape(rows, buffer.stride // 4)[:, : buffer.width]

    @property
    def lone_bytes(self) -> int:
        """Of nbytes, what is left after give_back()."""
        return sum(min(m.nbytes, self._lone[key] + 2 * mmap.PAGESIZE) for key, m in self._memory.items())

    def give_back(self) -> None:
        """After steps of several tokens, let the system have the memory that a lone one does not need."""
        for key, memory in self._memory.items():
            give_back(memory[self._lone[key] :])

    def _area(self, key: str, stride: int, lone: bool) -> int:
        if key not in self._memory:
            rows = self.threads if lone else self.rows
            self._memory[key] = reserve(rows * stride + 64, huge_pages=False, what="activations")
            self._lone[key] = self.threads * stride
            self.nbytes += rows * stride
        return address(self._memory[key])


class Hazards:
    """Finds where a barrier is needed: a buffer is read or written after another thread may have written
    it, or written after another may have read it, with no barrier in between.

    With a lone token, private buffers belong to one thread and need none; with several tokens, threads
    share tokens in some ops and columns in others, so every buffer counts.
    """

    def __init__(self) -> None:
        self._written: tuple[set[str], set[str]] = (set(), set())  # for one token, for many
        self._read: tuple[set[str], set[str]] = (set(), set())

    def before(self, reads: Sequence[Buffer | str], writes: Sequence[Buffer | str]) -> tuple[bool, bool]:
        """Whether a barrier must precede an instruction with these accesses: (one token, many tokens)."""
        result = []
        for many in (0, 1):
            r, w = ({_key(b) for b in accesses if _shared(b, bool(many))} for accesses in (reads, writes))
            written, read = self._written[many], self._read[many]
            barrier = bool((r | w) & written or w & read)
            if barrier:
                written.clear()
                read.clear()
            written |= w
            read |= r
            result.append(barrier)
        return result[0], result[1]

    def ignore_reading(self, buffer: Buffer) -> None:
        """Whoever has read the buffer since it was written does not mind if it is written again."""
        for read in self._read:
            read.discard(buffer.key)

    def meet(self, lone: bool = False) -> None:
        """Of many tokens, all threads have just waited for each other; lone: of a lone one too."""
        for many in (0, 1) if lone else (1,):
            self._written[many].clear()
            self._read[many].clear()


def _key(buffer: Buffer | str) -> str:
    return buffer if isinstance(buffer, str) else buffer.key


def _shared(buffer: Buffer | str, many: bool) -> bool:
    return many or isinstance(buffer, str) or not buffer.private

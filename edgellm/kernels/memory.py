"""Memory that kernels address by number: aligned arrays, huge-page arenas, virtual reservations."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError

HUGE_PAGE = 2 << 20


def aligned(count: int, dtype: type | np.dtype, alignment: int = 64) -> np.ndarray:
    """A zeroed array whose data starts at a multiple of `alignment` bytes."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.zeros(count * itemsize + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count * itemsize].view(dtype)


def reserve(nbytes: int, huge_pages: bool, what: str) -> np.ndarray:
    """`nbytes` of zeroed address space as uint8, 2 MiB aligned; the system finds pages when they are
    first touched. Raises EdgeError when even the address space is refused."""
    try:
        if hasattr(mmap, "MAP_PRIVATE"):  # shared memory, the default, gets no huge pages
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            area = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=flags)
        else:
            area = mmap.mmap(-1, nbytes + HUGE_PAGE)
    except (OSError, OverflowError, ValueError) as error:
        raise EdgeError(f"No memory for {what}: {nbytes / 2**20:.0f} MiB were refused ({error}).") from None
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(area, np.uint8)
    start = -raw.ctypes.data % HUGE_PAGE
    return raw[start : start + nbytes]


CAN_MAP_OVER = hasattr(mmap, "PROT_READ") and hasattr(os, "pwrite")  # a POSIX system
_MAP_FIXED = 0x10  # on Linux and macOS; Python has no name for it


def map_over(area: np.ndarray, file: int, nbytes: int) -> None:
    """Put the first `nbytes` of an open file in the place of the pages of `area`, which came from reserve().

    Shared and read-only: the pages are those of the system's file cache, not a copy, and reading ahead
    begins at once. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    start, flags = address(area), mmap.MAP_SHARED | _MAP_FIXED
    if libc.mmap(start, nbytes, mmap.PROT_READ, flags, file, 0) != start:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    area.flags.writeable = False
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for advice in ("MADV_HUGEPAGE", "MADV_WILLNEED"):  # advice only: what comes of it does not matter
        if hasattr(mmap, advice):
            libc.madvise(start, nbytes, getattr(mmap, advice))


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def release_pages(view: np.ndarray) -> None:
    """Drop the pages of a mapped file that lie wholly inside `view`; a later access reads them again.

    Does nothing for memory that is not a mapped file, or where the system has no such advice.
    """
    base = view
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = address(view) - address(np.frombuffer(base, np.uint8))
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and view.flags.c_contiguous and not view.flags.writeable:
        base.madvise(mmap.MADV_DONTNEED, first, length)


def give_back(view: np.ndarray) -> None:
    """Let the system have the pages that lie wholly inside `view`, of memory that came from reserve(): their
    content is lost, and who touches them finds zeros. Does nothing where the system has no such advice."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-address(view) // mmap.PAGESIZE) * mmap.PAGESIZE
    _drop(start, (address(view) + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE)


def release_code(library: str) -> int:
    """Drop the pages of the code and the constants of a shared library of this name; who needs them reads
    them again. Returns the bytes that are mapped; 0 where the system does not tell what is, or has no such
    advice."""
    maps = Path("/proc/self/smaps")
    if not maps.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    dropped, span = 0, (0, 0)
    for line in maps.read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if "-" in first:
            ours = len(rest) == 5 and rest[4].rpartition("/")[2].startswith(library)
            low, high = (int(part, 16) for part in first.split("-"))
            span = (low, high) if ours and rest[0] in ("r-xp", "r--p") else (0, 0)
        elif first == "Anonymous:" and rest[0] == "0":  # relocations are no copy of the file
            dropped += span[1] - span[0]
            _drop(*span)
    return dropped


def _drop(start: int, end: int) -> None:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if end > start:
        libc.madvise(start, end - start, mmap.MADV_DONTNEED)


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this process can ever have: the machine's, or its cgroup's (version 2, or 1)
    if that is less. None where the system does not tell."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((cgroup / name).read_text()))
    return min(limits, default=None)

"""Opening a file for reads past the page cache, and what the kernel tells of the file system under it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import EdgeError

DIRECT: int = getattr(os, "O_DIRECT", 0)
UNTOLD_ALIGNMENT = 4096  # bytes; fits every device's blocks and every page, where the kernel does not tell
IN_MEMORY = ("tmpfs", "ramfs")  # their files are the page cache

# From <linux/stat.h>: statx() of an open file, and the words of its answer about direct reads (Linux 6.1).
_EMPTY_PATH, _DIOALIGN, _STATX_BYTES = 0x1000, 0x2000, 256
_MASK_AT, _MEMORY_ALIGN_AT, _OFFSET_ALIGN_AT = 0, 152, 156


def open_to_read(path: Path, direct: bool) -> tuple[int, int, str]:
    """(file descriptor, alignment in bytes, why not direct or ""); an alignment of 1 means through the page
    cache. Raises EdgeError where the file cannot be opened."""
    _check_regular(path)
    if not direct:
        return _open(path, 0), 1, "through the page cache as asked"
    if not DIRECT:
        return _open(path, 0), 1, "through the page cache (this system has no O_DIRECT)"
    kind = mount_of(path).kind
    if kind in IN_MEMORY:
        return _open(path, 0), 1, f"through the page cache ({kind} has no other place)"
    try:
        fd = _open(path, DIRECT)
    except _InvalidFlag:
        return _open(path, 0), 1, f"through the page cache ({kind} has no O_DIRECT)"
    alignment = _direct_alignment(fd)
    if alignment == 0:
        os.close(fd)
        return _open(path, 0), 1, f"through the page cache ({kind} has no O_DIRECT for this file)"
    return fd, alignment, ""


class _InvalidFlag(Exception):
    """The file system does not take a flag of open()."""


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if flags and error.errno == errno.EINVAL:
            raise _InvalidFlag from None
        raise _unreadable(path, error) from None


def _check_regular(path: Path) -> None:
    """Raise EdgeError for what is no file: to open a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(mode):
        raise EdgeError(f"{path}: cannot be read (not a regular file).")


def _unreadable(path: Path, error: OSError) -> EdgeError:
    return EdgeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).")


def _direct_alignment(fd: int) -> int:
    """Bytes that offsets, lengths and addresses of direct reads must be multiples of; 0: there are none."""
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    buffer = (ctypes.c_ubyte * _STATX_BYTES)()
    if statx is None or statx(fd, b"", _EMPTY_PATH, _DIOALIGN, buffer) != 0:
        return UNTOLD_ALIGNMENT
    mask, memory, offset = (
        int.from_bytes(bytes(buffer[at : at + 4]), sys.byteorder)
        for at in (_MASK_AT, _MEMORY_ALIGN_AT, _OFFSET_ALIGN_AT)
    )
    if not mask & _DIOALIGN:
        return UNTOLD_ALIGNMENT
    return max(memory, offset) if offset else 0


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """What stays the same as long as a file is neither replaced nor written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Mount:
    """A file system where it is mounted: its type ("ext4") and what it lies on ("/dev/vda", or a name)."""

    kind: str
    source: str


def mount_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> Mount:
    """The mount that holds `path`; "unknown" where the system does not tell."""
    real = Path(os.path.realpath(path))
    best, found = -1, Mount("unknown", "unknown")
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:  # 36 35 98:0 / /mnt/place rw,noatime shared:1 - ext4 /dev/sda1 rw
        left, _, right = line.partition(b" - ")
        point = Path(_unescape(left.split()[4]))
        if real.is_relative_to(point) and len(point.parts) >= best:  # the last of equals hides those before
            kind, source = (_unescape(field) for field in right.split()[:2])
            best, found = len(point.parts), Mount(kind, source)
    return found


def _unescape(field: bytes) -> str:
    """A field of mountinfo, in which blanks are octal escapes."""
    for sign in (b" ", b"\t", b"\n", b"\\"):
        field = field.replace(b"\\%03o" % sign[0], sign)
    return os.fsdecode(field)


def device_name(path: Path, devices: Path = Path("/sys/dev/block")) -> str:
    """The kernel's name of the block device under `path` ("nvme0n1p2"), or what the mount table names."""
    number = os.stat(path).st_dev
    device = devices / f"{os.major(number)}:{os.minor(number)}"
    return os.path.basename(os.path.realpath(device)) if device.exists() else mount_of(path).source

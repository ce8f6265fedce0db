"""Writing a model file so that it is either whole and verified, or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgellm.errors import EdgeError
from edgellm.hub.progress import human

CHUNK = 1 << 20  # bytes read at a time
SPARE = 16 << 20  # bytes that a pull leaves free on the disk
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is fetched."""

    sha256: str | None = None
    size: int | None = None

    def check_size(self, size: int, label: str) -> None:
        if self.size is not None and size != self.size:
            raise EdgeError(f"{label}: the file has {size} bytes where {self.size} were expected.")


@dataclass(frozen=True)
class Fetched:
    """A model in place. For a folder, bytes is the sum and sha256 that of its `sha256sum` listing."""

    path: Path
    sha256: str
    bytes: int
    licence: str | None = None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of disk work on `path` into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise EdgeError(
            f"{path}: cannot write the model ({reason}); free some space or fix the folder, or set "
            "EDGELLM_CACHE to a folder elsewhere."
        ) from error


def require_space(folder: Path, n_bytes: int, label: str) -> None:
    """Raise EdgeError unless `folder`'s disk takes n_bytes more and keeps SPARE free."""
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if n_bytes + SPARE > free:
        raise EdgeError(
            f"{label} needs {human(n_bytes)} but {folder} has only {human(free)} free; free some space or "
            "set EDGELLM_CACHE to a folder on another disk."
        )


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut (POSIX; Windows cannot open folders)."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_folder(folder: Path, target: Path, old: Path) -> None:
    """Give a finished folder the name `target`, for good; what had it is `old` meanwhile, and then gone."""
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def wrong_checksum(label: str, expected: str, got: str) -> EdgeError:
    return EdgeError(
        f"{label}: wrong checksum, expected sha256 {expected} but got {got}; the file was removed, pull it "
        "again or check the source."
    )


class Part:
    """`target`.part: hashed while written, then verified, synced and renamed to `target` by commit().

    As a context manager it removes the part on any way out but commit(), unless `keep` was set.
    """

    def __init__(self, target: Path, label: str) -> None:
        self.target = target
        self.label = label
        self.path = target.with_name(target.name + ".part")
        self.keep = False
        self.size = 0
        self._digest = hashlib.sha256()
        with disk_errors(self.path):
            # Unbuffered: a full disk shows in write(), not once more in close().
            self._stream = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if not self.keep or self.size == 0:
            self.path.unlink(missing_ok=True)

    def fileno(self) -> int:
        return self._stream.fileno()

    def resume(self, n_bytes: int) -> None:
        """Keep the first n_bytes that an earlier run wrote (0: start over) and hash them again."""
        self._digest = hashlib.sha256()
        self.size = 0
        with disk_errors(self.path):
            self._stream.seek(0)
            while chunk := self._stream.read(min(CHUNK, n_bytes - self.size)):
                self._digest.update(chunk)
                self.size += len(chunk)
            self._stream.seek(self.size)
            self._stream.truncate()

    def write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            with disk_errors(self.path):
                n_bytes = self._stream.write(left)  # less than all of them just before the disk is full
            self._digest.update(left[:n_bytes])
            self.size += n_bytes
            left = left[n_bytes:]

    def sync(self) -> None:
        """Everything written so far survives a power cut."""
        with disk_errors(self.path):
            os.fsync(self._stream.fileno())

    def commit(self, expected: Expected, licence: str | None = None) -> Fetched:
        """Verify, sync and rename. Raises EdgeError, and the part goes, if it is not the file expected."""
        self.keep = False
        expected.check_size(self.size, self.label)
        sha256 = self._digest.hexdigest()
        if expected.sha256 not in (None, sha256):
            raise wrong_checksum(self.label, str(expected.sha256), sha256)
        self.sync()
        with disk_errors(self.path):
            self._stream.seek(0)
            if self._stream.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
                raise EdgeError(f"{self.label}: this is not a GGUF file; it was removed, check the source.")
            self._stream.close()
            os.replace(self.path, self.target)
            fsync_folder(self.target.parent)
        return Fetched(self.target, sha256, self.size, licence)

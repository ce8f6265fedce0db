"""A memory cgroup for one command: version 1 or 2, whichever this machine has.

Page cache counts as much as other memory: what a mapped file brings in is charged to the group, and dropped
again when the limit is reached. Swap is not used.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import EdgeError

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Outcome:
    """Of a command. peak: most bytes that the group held, page cache included; hits: how often the limit was
    reached; killed: by the kernel, for want of memory."""

    status: int
    peak: int
    hits: int
    killed: bool
    seconds: float


class Group:
    """A fresh cgroup with a limit of `limit` bytes; remove() when its processes have ended.

    Raises EdgeError where none can be made: it takes root, and a kernel with memory cgroups.
    """

    def __init__(self, limit: int, root: Path = ROOT):
        self.version = 1 if (root / "memory" / "memory.limit_in_bytes").exists() else 2
        parent = root / "memory" if self.version == 1 else root
        if self.version == 2 and not (root / "cgroup.controllers").exists():
            raise EdgeError(f"{root}: this machine has no memory cgroups; run this on a Linux that has.")
        self.path = parent / f"edgellm-{os.getpid()}-{time.monotonic_ns()}"
        try:
            if self.version == 2:
                (root / "cgroup.subtree_control").write_text("+memory")
            self.path.mkdir()
            if self.version == 1:
                (self.path / "memory.swappiness").write_text("0")
                (self.path / "memory.limit_in_bytes").write_text(str(limit))
            else:
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                    (self.path / "memory.swap.max").write_text("0")
                (self.path / "memory.max").write_text(str(limit))
        except PermissionError:
            raise EdgeError(f"{parent}: a memory cgroup takes root; run this with sudo.") from None
        except OSError as error:
            self.remove()
            raise EdgeError(
                f"{self.path}: cannot make a memory cgroup ({error.strerror or error})."
            ) from None

    @property
    def peak(self) -> int:
        return self._number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    @property
    def hits(self) -> int:
        return self._number("memory.failcnt") if self.version == 1 else self._events().get("max", 0)

    @property
    def kills(self) -> int:
        if self.version == 2:
            return self._events().get("oom_kill", 0)
        rows = (self.path / "memory.oom_control").read_text().split()
        return int(dict(zip(rows[::2], rows[1::2], strict=False)).get("oom_kill", 0))

    def add(self, pid: int) -> None:
        """Move a process in, with all that it will take from now on."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        for _ in range(50):
            with contextlib.suppress(FileNotFoundError):
                try:
                    self.path.rmdir()
                except OSError:  # the kernel is still cleaning up behind the last process
                    time.sleep(0.1)
                    continue
            return

    def _number(self, name: str) -> int:
        return int((self.path / name).read_text())

    def _events(self) -> Mapping[str, int]:
        rows = (self.path / "memory.events").read_text().split()
        return {key: int(value) for key, value in zip(rows[::2], rows[1::2], strict=False)}


def run_limited(command: Sequence[str], limit: int, **options: object) -> Outcome:
    """Run a command in a cgroup of its own. options: as of subprocess.Popen."""
    group = Group(limit)
    try:
        begin = time.monotonic()
        # The command begins inside: a shell moves itself before it becomes the command.
        enter = f'echo $$ > "{group.path}/cgroup.procs" && exec "$@"'
        process = subprocess.Popen(["/bin/sh", "-c", enter, "sh", *command], **options)  # type: ignore[call-overload]
        try:
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - begin
        return Outcome(status, group.peak, group.hits, group.kills > 0, seconds)
    finally:
        group.remove()


def drop_caches() -> None:
    """Forget all of the machine's clean page cache. Raises EdgeError without root."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise EdgeError(f"The page cache cannot be dropped ({error.strerror}); run this as root.") from None


def available() -> bool:
    """Whether a cgroup can be made here."""
    if sys.platform != "linux":
        return False
    try:
        Group(64 << 20).remove()
    except EdgeError:
        return False
    return True

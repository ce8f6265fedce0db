"""Packed weights kept on disk, so that a later start maps them and computes from the mapping.

A pack is believed only if its header is, byte for byte, the one that this start would write: it names the
model's files with sizes and times, a hash of the sources that decide the layout, and every weight.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, file_ids
from edgellm.hub.packs import MAGIC, PART_SUFFIX, pack_path, tidy_packs
from edgellm.hub.store import SPARE, fsync_folder
from edgellm.kernels.layout import align
from edgellm.kernels.memory import CAN_MAP_OVER, map_over

ENVIRONMENT_VARIABLE = "EDGELLM_PACKED"
PAGE = 4096  # what the header is padded to
_SOURCES = (
    "executors/native/packed_file.py",
    "executors/native/packing.py",
    "executors/native/weights.py",
    "formats",
    "kernels/base3.py",
    "kernels/blocks.py",
    "kernels/codes.py",
    "kernels/layout.py",
    "kernels/pack.py",
    "kernels/pack_base3.py",
    "kernels/simd",
)


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why the packed weights of this checkpoint are not kept on disk; None if they are.

    Raises EdgeError where EDGELLM_PACKED has a value without a meaning.
    """
    wish = os.environ.get(ENVIRONMENT_VARIABLE) or "on"
    if wish not in ("on", "off"):
        raise EdgeError(f"{ENVIRONMENT_VARIABLE}={wish} has no meaning; set it to on or off.")
    if wish == "off":
        return f"{ENVIRONMENT_VARIABLE}=off"
    if not checkpoint.files:
        return "the model is not a file"
    return None if CAN_MAP_OVER else "this system cannot map files in place"


@cache
def _layout_version() -> str:
    """Changes whenever the same model could be packed into other bytes."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for name in _SOURCES:
        path = root / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


class PackedFile:
    """The file of a checkpoint's packed weights, there or not.

    weights: one row of facts for each, in order; they take `nbytes` behind the header, whose length is
    `start`, a multiple of PAGE.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Iterable[Mapping[str, Any]], nbytes: int):
        self._checkpoint = checkpoint
        self.path = pack_path(checkpoint.path)
        about = {
            "model": os.path.realpath(checkpoint.path),
            "files": [file._asdict() for file in checkpoint.files],
            "assumptions": checkpoint.assumptions,
            "layout": _layout_version(),
            "bytes": nbytes,
        }
        text = MAGIC + b"".join(json.dumps(row).encode() + b"\n" for row in (about, *weights))
        self.header = text.ljust(align(len(text), PAGE), b"\n")
        self.start = len(self.header)
        self.nbytes = self.start + nbytes

    def fits(self) -> bool:
        """Whether there is a file, and it is that of these weights."""
        return self._opened(lambda file: None)

    def map_over(self, area: np.ndarray) -> bool:
        """Map the file in the place of `area` if there is one that fits the checkpoint."""
        return self._opened(lambda file: map_over(area, file, self.nbytes))

    def _opened(self, use: Callable[[int], None]) -> bool:
        """use(file) if there is a file that fits; whether there was one and it could be used."""
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return False
        try:
            if os.fstat(file).st_size != self.nbytes or os.pread(file, self.start, 0) != self.header:
                return False
            use(file)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    @contextlib.contextmanager
    def writing(self) -> Iterator[int]:
        """Yields an open file for the whole content, header included.

        When the block ends well, what it wrote is made to last and takes its place; in any other case
        nothing is left of it. Raises OSError where that cannot be done.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        tidy_packs()
        if shutil.disk_usage(folder).free < self.nbytes + SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = self.path.with_name(f"{self.path.name}.{os.urandom(6).hex()}{PART_SUFFIX}")
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield file
            os.fsync(file)
            if file_ids([Path(f.path) for f in self._checkpoint.files]) != self._checkpoint.files:
                raise EdgeError(
                    f"{self._checkpoint.path}: the model changed while it was read; run it again."
                )
            os.replace(part, self.path)
            fsync_folder(folder)
        finally:
            part.unlink(missing_ok=True)
            os.close(file)


def write_all(file: int, data: np.ndarray, offset: int) -> None:
    """All of a contiguous uint8 array, at an offset of an open file."""
    left = data.data
    while left:
        count = os.pwrite(file, left, offset)
        left, offset = left[count:], offset + count

"""Packed weights on disk: one file per model, `packed/<name>-<hash of its path>.edgepack` in the cache.

A file begins with a text header, padded to whole pages: the line of MAGIC, a JSON object that names the
model and the files it was packed from, then one JSON object per weight. What the layout means is the native
executor's business (executors/native/packed_file.py); here packs are found, and removed with their model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from edgellm.hub.paths import cache_root

MAGIC = b"edgellm packed weights\n"
SUFFIX = ".edgepack"
PART_SUFFIX = ".part"
_ABANDONED_S = 3600.0  # a part that nobody has written to for so long has lost its process
_LONGEST_LINE = 1 << 20  # bytes of the header's JSON line about the model; far more than any needs


def packs_dir() -> Path:
    """Folder of the packed weights; not created here."""
    return cache_root() / "packed"


def pack_path(model: Path) -> Path:
    """Where the packed weights of a model file or folder belong. A newer pack takes the older one's place."""
    real = os.path.realpath(model)
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(real).stem)[:80]
    return packs_dir() / f"{stem}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}{SUFFIX}"


def packed_from(pack: Path) -> list[Path]:
    """The files that a pack was made from; none if it is damaged."""
    try:
        with pack.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                return []
            files = json.loads(stream.readline(_LONGEST_LINE))["files"]
        return [Path(os.fsdecode(file["path"])) for file in files]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remove_packs_of(folder: Path) -> int:
    """Delete the packs of models inside `folder` (symbolic links resolved); returns the bytes freed."""
    real = Path(os.path.realpath(folder))
    return sum(_remove(p) for p in _files(SUFFIX) if any(f.is_relative_to(real) for f in packed_from(p)))


def tidy_packs() -> None:
    """Delete the packs whose model is gone, and what interrupted packing left."""
    for pack in _files(SUFFIX):
        files = packed_from(pack)
        if not files or not all(os.path.lexists(file) for file in files):
            _remove(pack)
    for part in _files(PART_SUFFIX):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink()


def _files(suffix: str) -> list[Path]:
    try:
        return [path for path in packs_dir().iterdir() if path.name.endswith(suffix)]
    except OSError:  # no folder yet, or one that may not be read
        return []


def _remove(path: Path) -> int:
    """Bytes freed; 0 where another process was faster or the folder is read-only."""
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError:
        return 0
    return size

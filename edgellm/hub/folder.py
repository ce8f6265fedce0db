"""A model that is a folder: Hugging Face's config.json, tokenizer files and safetensors weights."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.store import (
    Expected,
    Fetched,
    disk_errors,
    fsync_folder,
    replace_folder,
    sha256_file,
    wrong_checksum,
)

# Data alone: never pickles, never code. Top-level files only; "consolidated" repeats the weights.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*")
LEAVE_OUT = ("*/*", ".*", "consolidated*.safetensors")


def wanted(name: str) -> bool:
    """Whether a model folder takes this file; `name` is relative to the folder, with "/"."""
    return any(fnmatchcase(name, p) for p in PATTERNS) and not any(fnmatchcase(name, p) for p in LEAVE_OUT)


def empty_folder(target: Path) -> Path:
    """A new, empty staging folder beside `target`."""
    staging = target.with_name(target.name + ".part")
    with disk_errors(staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    return staging


def commit_folder(
    staging: Path, target: Path, label: str, expected: Mapping[str, Expected], licence: str | None = None
) -> Fetched:
    """Verify staging's files against `expected` (name -> what is known), sync them, put them at `target`.

    sha256 is that of the lines "<sha256>  <name>\\n" in name order, as `sha256sum *` prints them. Raises
    EdgeError, and staging goes, when a file is missing or differs.
    """
    digest, size = hashlib.sha256(), 0
    with disk_errors(target):
        for name in sorted(expected):
            path, known = staging / name, expected[name]
            if not path.is_file():
                raise EdgeError(f"{label}: {name} did not arrive; pull it again.")
            known.check_size(path.stat().st_size, f"{label}/{name}")
            sha256 = sha256_file(path)
            if known.sha256 not in (None, sha256):
                shutil.rmtree(staging, ignore_errors=True)
                raise wrong_checksum(f"{label}/{name}", str(known.sha256), sha256)
            digest.update(f"{sha256}  {name}\n".encode())
            size += path.stat().st_size
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_folder(staging)
        replace_folder(staging, target, target.with_name(target.name + ".old"))
    return Fetched(target, digest.hexdigest(), size, licence)

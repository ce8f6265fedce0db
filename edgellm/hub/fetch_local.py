"""Copy a local model into the cache.

A file system that can share blocks (btrfs, XFS, ...) shares them, so the copy costs no space. A hard link
would be as cheap, but then editing the original in place would change the verified model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.folder import commit_folder, empty_folder, wanted
from edgellm.hub.progress import byte_bar
from edgellm.hub.sources import LocalSource, refuse_split
from edgellm.hub.store import CHUNK, Expected, Fetched, Part, require_space

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of one file with another


def fetch_local(source: LocalSource, target: Path, expected: Expected, show: bool) -> Fetched:
    """Copy the file or Hugging Face folder at source.path to `target`; EdgeError when it is neither."""
    if source.path.is_dir():
        return _copy_folder(source, target, show)
    refuse_split(source.path.name, source.label)
    try:
        size = source.path.stat().st_size
        expected.check_size(size, source.label)
        with source.path.open("rb") as stream, Part(target, source.label) as part:
            part.resume(0)
            if _share_blocks(stream.fileno(), part.fileno()):
                part.resume(size)  # reads the shared blocks to hash them
            else:
                require_space(target.parent, size, source.label)
                with byte_bar(source.path.name, show) as advance:
                    while chunk := stream.read(CHUNK):
                        part.write(chunk)
                        advance(part.size, size)
            return part.commit(expected)
    except OSError as error:
        raise EdgeError(f"{source.path}: cannot read it ({error.strerror or error}).") from error


def _share_blocks(source: int, target: int) -> bool:
    """True when the whole file now shares the source's blocks; many file systems cannot."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy_folder(source: LocalSource, target: Path, show: bool) -> Fetched:
    import shutil

    if source.path.suffix == ".edge":
        raise EdgeError(f"{source.path}: a bundle is used where it lies; give its path as the model.")
    names = sorted(p.name for p in source.path.iterdir() if p.is_file() and wanted(p.name))
    if "config.json" not in names or not any(n.endswith(".safetensors") for n in names):
        raise EdgeError(f"{source.path}: not a model folder (it needs config.json and .safetensors files).")
    sizes = {name: (source.path / name).stat().st_size for name in names}
    require_space(target.parent, sum(sizes.values()), source.label)
    staging = empty_folder(target)
    try:
        with byte_bar(source.path.name, show) as advance:
            done = 0
            for name in names:
                shutil.copyfile(source.path / name, staging / name)
                done += sizes[name]
                advance(done, sum(sizes.values()))
        return commit_folder(staging, target, source.label, {n: Expected(size=s) for n, s in sizes.items()})
    except OSError as error:
        raise EdgeError(f"{source.path}: cannot copy it to {staging} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)

"""The pulled models: one folder each under the models folder, with a small record.json beside the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.catalogue import catalogue
from edgellm.hub.packs import remove_packs_of
from edgellm.hub.paths import models_dir
from edgellm.hub.progress import note
from edgellm.hub.sources import MODEL_NAME, check_model_name
from edgellm.hub.store import disk_errors, fsync_folder

_RECORD = "record.json"


@dataclass(frozen=True)
class Record:
    """A pulled model. `file` is the model's file or folder inside the model's own folder."""

    name: str
    source: str
    file: str
    sha256: str
    bytes: int
    licence: str | None
    pulled: str  # ISO 8601, UTC

    @property
    def path(self) -> Path:
        return model_folder(self.name) / self.file


def model_folder(name: str) -> Path:
    """The folder of a model name (checked by the caller), there or not."""
    return models_dir() / name


def read_record(name: str) -> Record | None:
    """The record of a pulled model; None when it was not pulled, or its files were deleted or damaged."""
    try:
        fields = json.loads((model_folder(name) / _RECORD).read_text(encoding="utf-8"))
        record = Record(**fields)
        plain = Path(record.file).name == record.file
        if record.name != name or not plain or not isinstance(record.bytes, int):
            return None
        if record.path.is_dir():
            return record
        return record if record.path.stat().st_size == record.bytes else None
    except (OSError, ValueError, TypeError):  # TypeError: not an object, or other fields
        return None


def write_record(record: Record) -> None:
    """Replace the record of record.name at once."""
    path = model_folder(record.name) / _RECORD
    partial = path.with_name(_RECORD + ".part")
    with disk_errors(path):
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(asdict(record), stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        fsync_folder(path.parent)


def pulled() -> list[Record]:
    """Every pulled model that is still whole, by name."""
    return [record for name in model_names() if (record := read_record(name)) is not None]


def model_names() -> list[str]:
    """Names that have a folder: pulled models, and pulls that were interrupted."""
    try:
        return sorted(p.name for p in models_dir().iterdir() if MODEL_NAME.fullmatch(p.name) and p.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EdgeError(
            f"{models_dir()}: cannot read the model cache ({error.strerror or error})."
        ) from error


def tidy(record: Record) -> None:
    """Remove from the model's folder what earlier and interrupted pulls left."""
    folder = model_folder(record.name)
    with disk_errors(folder):
        for path in folder.iterdir():
            if path.name in (record.file, _RECORD):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def bytes_on_disk(name: str) -> int:
    return sum(p.lstat().st_size for p in model_folder(name).rglob("*") if not p.is_dir())


@contextmanager
def locked(name: str, wait: bool = True, show: bool = True) -> Iterator[None]:
    """Hold the model's lock, which the operating system drops when the process dies.

    wait: until another process is done with it, else raise EdgeError at once.
    """
    from filelock import FileLock, Timeout

    path = models_dir() / ".locks" / f"{name}.lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:
            raise EdgeError(
                f"{path}: this file system has no locks; set EDGELLM_CACHE to a local folder."
            ) from None
        except Timeout:
            if not wait:
                raise EdgeError(
                    f"{name} is being pulled by another process; wait for it or stop it."
                ) from None
            note(f"Another process is pulling {name}; waiting for it.", show)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove(name_or_path: str) -> tuple[str, int]:
    """Delete a pulled or half-pulled model and its packed weights; returns its name and the bytes freed.

    A path works too when it lies in the models folder. Raises EdgeError for anything outside the cache and
    for a name that was not pulled.
    """
    name = _name_in_cache(name_or_path)
    folder = model_folder(name)
    if folder.is_symlink() or not folder.is_dir():
        entry = catalogue().get(name)
        if entry is not None and entry.shipped:
            raise EdgeError(f"{name} is a part of edgellm itself; there is nothing to remove.")
        known = ", ".join(model_names()) or "none"
        raise EdgeError(f"{name_or_path} is not a pulled model (pulled: {known}).")
    with locked(name, wait=False):
        freed = bytes_on_disk(name) + remove_packs_of(folder)
        with disk_errors(folder):
            (folder / _RECORD).unlink(missing_ok=True)  # first: a half-deleted model must not look pulled
            shutil.rmtree(folder)
    return name, freed


def _name_in_cache(name_or_path: str) -> str:
    root = models_dir()
    if "/" not in name_or_path and os.sep not in name_or_path:
        return check_model_name(name_or_path)
    path = Path(os.path.abspath(os.path.expanduser(name_or_path)))
    if not path.is_relative_to(root) or path == root:
        raise EdgeError(f"{name_or_path} lies outside the model cache {root}; rm removes pulled models only.")
    return check_model_name(path.relative_to(root).parts[0])

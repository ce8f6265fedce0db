"""The folder that a bundle is packed in, OUT.edge.packing: it is locked, and what is done in it stays done.

    progress.json   what is packed and how ("identity"), and for each finished layer what packing changed
    layers.bin      of each finished layer its checksums, then the scales of a ternary down
    ffn.bin         at its full length from the start

A layer is finished when its bytes are on the disk and only then named in progress.json. So whatever kills the
packer, the next one goes on behind the last finished layer. The files of that bookkeeping leave the folder
after it has become the bundle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.edge_manifest import FFN, superblock
from edgellm.formats.edge_neurons import Loss
from edgellm.formats.slots import SECTIONS, Role, SlotLayout, checksums
from edgellm.hub.progress import human
from edgellm.hub.store import SPARE, fsync_folder

PROGRESS, LAYERS = "progress.json", "layers.bin"
Note = Callable[[str], None]
Losses = Mapping[Role, Loss]
_AT_ONCE = 16 << 20  # bytes of slots that are read back at a time


@contextlib.contextmanager
def locked_folder(out: Path) -> Iterator[Path]:
    """The folder that `out` is packed in, made if need be; nobody else has it until the end.

    Raises EdgeError where another process is packing to `out`, and where there can be no such folder.
    """
    folder = out.with_name(out.name + ".packing")
    fd = _lock(out, folder)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not empty unless the start came to nothing
            if os.path.samestat(os.fstat(fd), os.stat(folder)):
                folder.rmdir()
        os.close(fd)


def _lock(out: Path, folder: Path) -> int:
    import fcntl

    while True:
        try:
            folder.mkdir(exist_ok=True)
            fd = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise EdgeError(f"{folder}: the folder cannot be made ({error.strerror or error}).") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(folder)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise EdgeError(
                f"{out}: another process is packing to it; wait for that one, or stop it."
            ) from None
        except FileNotFoundError:
            pass  # the other one has just finished, and the folder has its new name
        except OSError as error:
            os.close(fd)
            raise EdgeError(
                f"{folder}: the folder cannot be locked ({error.strerror or error}); pack to a local disk."
            ) from None
        os.close(fd)


class Work:
    """What is done in `folder`, of the pack that `identity` describes: the source's files and all options."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], layout: SlotLayout | None):
        self.folder, self.layout = folder, layout
        self._identity = json.loads(json.dumps(identity))
        self.losses: list[Losses] = []  # of each finished layer
        self._sums_bytes = 0 if layout is None else layout.slots * 2 * 8
        ternary = layout is not None and layout.codecs["down"] == "t2"
        self._scale_bytes = layout.hidden * 4 if layout is not None and ternary else 0

    def begin(self, out: Path, note: Note) -> None:
        """Find what an earlier start did, or clear the folder."""
        found = self._read_progress()
        if found is not None and found.get("identity") == self._identity:
            self._tidy()
            self._take_up(found)
            if self.layout is not None:
                note(
                    f"{out}: found an unfinished pack, {len(self.losses)} of {self.layout.layers} layers "
                    "done; it goes on there."
                )
            return
        if any(self.folder.iterdir()):
            note(f"{out}: found an unfinished pack of another model or with other options; starting anew.")
        self.clear()
        self._write_progress()
        if self.layout is not None:
            with (self.folder / FFN).open("xb") as file:
                file.write(superblock(self.layout))
                file.truncate(self.layout.file_bytes)
            (self.folder / LAYERS).touch()

    def clear(self) -> None:
        """Remove everything."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def require_space(self, out: Path, nbytes: int) -> None:
        """Raise EdgeError unless the disk takes a bundle of `nbytes`, of which some may be there already."""
        there = sum(path.lstat().st_blocks * 512 for path in self.folder.iterdir())
        free = shutil.disk_usage(self.folder).free
        if nbytes - there + SPARE > free:
            raise EdgeError(
                f"{out}: the bundle needs {human(nbytes - there)}, but its disk has only {human(free)} free; "
                "free some space or write it elsewhere."
            )

    def finish_layer(self, layer: int, sums: np.ndarray, scale: np.ndarray | None, losses: Losses) -> None:
        """Layer number `layer` is in ffn.bin, which is on the disk. sums: uint64 (slots, 2); scale: float32
        (hidden,) of a ternary down."""
        with (self.folder / LAYERS).open("r+b") as file:
            file.seek(layer * (self._sums_bytes + self._scale_bytes))
            file.write(sums.astype("<u8").tobytes())
            if scale is not None:
                file.write(scale.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.losses = [*self.losses[:layer], losses]
        self._write_progress()

    def finished(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Of the finished layers: sums, uint64 (layers, slots, 2), and scales, float32 (layers, hidden)."""
        layers, record = len(self.losses), self._sums_bytes + self._scale_bytes
        rows = np.fromfile(self.folder / LAYERS, np.uint8, layers * record).reshape(layers, record)
        slots = self._sums_bytes // 16
        sums = np.ascontiguousarray(rows[:, : self._sums_bytes]).view("<u8").reshape(layers, slots, 2)
        scales = np.ascontiguousarray(rows[:, self._sums_bytes :]).view("<f4")
        return sums, scales if self._scale_bytes else None

    def _read_progress(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / PROGRESS).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _write_progress(self) -> None:
        losses = [{role: [one.error, one.weights] for role, one in each.items()} for each in self.losses]
        state = {"identity": self._identity, "losses": losses}
        write_file(self.folder / PROGRESS, json.dumps(state).encode())

    def _tidy(self) -> None:
        """Remove what was being written when an earlier start was killed."""
        for path in self.folder.glob("*.part"):
            path.unlink()

    def _take_up(self, found: dict[str, Any]) -> None:
        """Believe the layers that are on the disk as they were packed."""
        layout = self.layout
        if layout is None:
            return
        try:
            losses: list[Losses] = [_losses(each) for each in found["losses"][: layout.layers]]
        except (KeyError, TypeError, ValueError, AttributeError):
            losses = []
        ffn, layers = self.folder / FFN, self.folder / LAYERS
        if not ffn.is_file() or ffn.stat().st_size != layout.file_bytes or not layers.is_file():
            with ffn.open("wb") as file:
                file.write(superblock(layout))
                file.truncate(layout.file_bytes)
            layers.touch()
            losses = []
        record = self._sums_bytes + self._scale_bytes
        self.losses = losses[: layers.stat().st_size // record]
        sums, _ = self.finished()
        with ffn.open("rb") as file:
            for layer, wanted in enumerate(sums):
                if any((got != wanted[i]).any() for i, got in _read_sums(file, layout, layer)):
                    self.losses = self.losses[:layer]
                    return


def _losses(table: Mapping[Any, Any]) -> dict[Role, Loss]:
    return {role: Loss(float(error), float(weights)) for role, (error, weights) in table.items()}


def write_file(path: Path, content: bytes) -> None:
    """Replace a file at once and for good."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    fsync_folder(path.parent)


def section_sums(layout: SlotLayout, slots: np.ndarray) -> np.ndarray:
    """uint64 (n, 2) of slots (n, stride): the checksum of each section, 0 for one that is not there."""
    sums = np.zeros((len(slots), len(SECTIONS)), np.uint64)
    for section in range(len(SECTIONS)):
        begin, size = layout.section_offset(section), layout.section_bytes(section)
        if size:
            sums[:, section] = checksums(slots[:, begin : begin + size])
    return sums


def _read_sums(file: Any, layout: SlotLayout, layer: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The checksums of a layer's slots as they are on the disk, some slots at a time."""
    step = max(1, _AT_ONCE // layout.stride)
    file.seek(layout.layer_offset(layer))
    for first in range(0, layout.slots, step):
        count = min(step, layout.slots - first)
        data = np.frombuffer(file.read(count * layout.stride), np.uint8)
        yield slice(first, first + count), section_sums(layout, data.reshape(count, layout.stride))

"""Measuring what reads from a device cost, and keeping the result."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edgellm.errors import EdgeError
from edgellm.flash.device import Cell, DeviceModel, Pattern
from edgellm.flash.files import device_name, mount_of
from edgellm.flash.reader import DEPTH, EngineName, Reader
from edgellm.hub.paths import cache_root
from edgellm.hub.progress import human
from edgellm.kernels.memory import address, reserve

SIZES = tuple(4096 << i for i in range(11))  # 4 KiB to 4 MiB
DEPTHS = (1, 2, 4, 8, 16, 32, DEPTH)
SCRATCH_BYTES = 512 << 20
BUDGET_S = 25.0
ROUNDS = 3  # of the whole table; a cell is the median, so that a disturbance of one does no harm
SEQUENTIAL_BYTES = 1 << 20  # of a sequential read
AREA_BYTES = 64 << 20  # of memory that is read into, over and over
CHUNK = 16 << 20
WRITING_SHARE = 0.2  # of the budget

Advance = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class _Point:
    """What one cell measures."""

    pattern: Pattern
    direct: bool
    nbytes: int
    depth: int


def probe(
    path: Path,
    *,
    sizes: Sequence[int] = SIZES,
    depths: Sequence[int] = DEPTHS,
    scratch_bytes: int = SCRATCH_BYTES,
    budget_s: float = BUDGET_S,
    rounds: int = ROUNDS,
    engine: EngineName | None = None,
    advance: Advance = lambda done, total: None,
) -> DeviceModel:
    """Measure reads from the file system that holds `path`, a folder or a file.

    Random reads of each size at each depth, and sequential ones, past the page cache and through it (emptied
    before), of a scratch file of random bytes that has no name and so cannot stay behind. The whole takes
    about budget_s seconds; slow devices get fewer requests, fewer rounds, and a smaller file. engine: as for
    a Reader. Raises EdgeError where there is no room, no right to write, or no Linux.
    """
    folder = folder_of(path)
    started = time.monotonic()
    with _scratch(folder, scratch_bytes, max(sizes), budget_s * WRITING_SHARE) as file:
        bench = _Bench(file, engine, max(sizes), max(depths))
        modes = [True, False] if bench.direct else [False]
        sequential = max(size for size in sizes if size <= max(SEQUENTIAL_BYTES, min(sizes)))
        points = [_Point("random", mode, size, depth) for mode in modes for size in sizes for depth in depths]
        points += [_Point("sequential", mode, sequential, depth) for mode in modes for depth in depths]
        samples: dict[_Point, list[tuple[int, float, float]]] = {point: [] for point in points}
        for step in range(rounds * len(points)):
            turn, i = divmod(step, len(points))
            if i == 0:  # in an order of its own, so that a drift of the device has no size or depth
                order = np.random.default_rng(turn).permutation(len(points))
            left = started + budget_s - time.monotonic()
            if turn and left <= 0:
                break
            point = points[order[i]]
            samples[point].append(bench.sample(point, max(0.0, left) / (rounds * len(points) - step)))
            advance(step + 1, rounds * len(points))
    return DeviceModel(
        folder=str(folder),
        device=device_name(folder),
        file_system=mount_of(folder).kind,
        kernel=platform.release(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        kind=bench.kind,
        engine=bench.engine,
        direct=bench.direct,
        scratch_bytes=bench.size,
        cells=tuple(_cell(point, found) for point, found in samples.items()),
    )


def _cell(point: _Point, samples: list[tuple[int, float, float]]) -> Cell:
    seconds = [sample[1] for sample in samples]
    middle = float(np.median(seconds))
    return Cell(
        pattern=point.pattern,
        direct=point.direct,
        nbytes=point.nbytes,
        depth=point.depth,
        requests=sum(sample[0] for sample in samples),
        seconds=middle,
        cpu_seconds=float(np.median([sample[2] for sample in samples])),
        spread=(max(seconds) - min(seconds)) / middle,
    )


class _Bench:
    """Runs the points on a scratch file."""

    def __init__(self, file: IO[bytes], engine: EngineName | None, largest: int, deepest: int):
        self._fd = file.fileno()
        self._path = _name(file)
        self._wanted = engine
        self._largest = largest
        self._random = np.random.default_rng(0)
        with self._reader(_Point("random", True, largest, deepest)) as reader:
            self.direct, self.kind, self.engine, self.size = (
                reader.direct,
                reader.kind,
                reader.engine,
                reader.size,
            )
        self._area = reserve(max(largest, min(AREA_BYTES, self.size)), huge_pages=True, what="the reads")
        self._area[:] = 0  # a page that was never written is not memory yet
        self._expected: dict[_Point, float] = {}  # seconds a request

    def _reader(self, point: _Point) -> Reader:
        return Reader(
            self._path,
            direct=point.direct,
            depth=point.depth,
            threads=point.depth,
            engine=self._wanted,
            longest=self._largest,
        )

    def sample(self, point: _Point, seconds: float) -> tuple[int, float, float]:
        """(requests, seconds each, processor seconds each) of about so many seconds of reading."""
        with self._reader(point) as reader:
            if point not in self._expected:
                self._expected[point] = self._run(reader, point, 2)[1]
            requests = round(seconds / self._expected[point])
            found = self._run(reader, point, requests)
            self._expected[point] = found[1]
            return found

    def _run(self, reader: Reader, point: _Point, requests: int) -> tuple[int, float, float]:
        blocks = self.size // point.nbytes
        requests = max(2, min(requests, blocks))
        if not point.direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if point.pattern == "random":
            chosen = self._random.permutation(blocks)[:requests]
        else:
            chosen = self._random.integers(blocks - requests + 1) + np.arange(requests)
        slots = np.arange(requests) % (len(self._area) // point.nbytes)
        lengths = np.full(requests, point.nbytes)
        cpu, start = time.process_time(), time.perf_counter()
        reader.read(chosen * point.nbytes, lengths, address(self._area) + slots * point.nbytes)
        end, cpu_end = time.perf_counter(), time.process_time()
        return requests, (end - start) / requests, (cpu_end - cpu) / requests


def folder_of(path: Path) -> Path:
    """The folder itself, or the one that a file lies in, absolute. Raises EdgeError if there is none."""
    real = Path(os.path.realpath(path))
    folder = real if real.is_dir() else real.parent
    if not folder.is_dir() or not real.exists():
        raise EdgeError(f"{path}: there is no such file or folder.")
    return folder


@contextlib.contextmanager
def _scratch(folder: Path, nbytes: int, largest: int, budget_s: float) -> Iterator[IO[bytes]]:
    """A file of random bytes, at most `nbytes` and half of what is free, a multiple of `largest`."""
    if not hasattr(os, "posix_fadvise") or not Path("/proc/self/fd").is_dir():
        raise EdgeError("Measuring a device needs Linux: elsewhere the page cache cannot be kept out.")
    least = 2 * largest  # with a single place to read, nothing is random
    with _scratch_errors(folder):
        free = shutil.disk_usage(folder).free
        most = min(nbytes, free // 2) // largest * largest
        if most < least:
            raise EdgeError(
                f"{folder}: measuring the device takes {human(2 * least)} of free space, and there are "
                f"{human(free)}; free some."
            )
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
    with file:
        with _scratch_errors(folder):
            _fill(file, most, least, budget_s)
        try:
            yield file
        except EdgeError as error:  # of a Reader, which knows the file by its number
            raise EdgeError(str(error).replace(_name(file), f"{folder} (scratch file)")) from None


def _name(file: IO[bytes]) -> str:
    """What opens the same file once more, nameless as it is."""
    return f"/proc/self/fd/{file.fileno()}"


def _fill(file: IO[bytes], most: int, least: int, budget_s: float) -> None:
    """Write random bytes, which no device compresses, until `most` or the time is reached; to the disk."""
    random = np.random.default_rng(1)
    deadline, size = time.monotonic() + budget_s, 0
    while size < most and (size < least or time.monotonic() < deadline):
        left = memoryview(random.bytes(min(CHUNK, most - size)))
        while left:
            left = left[file.write(left) :]
        size = min(most, size + CHUNK)
        os.fsync(file.fileno())  # each time: otherwise the clock sees memory, not the disk
    file.truncate(size - size % (least // 2))


@contextlib.contextmanager
def _scratch_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeError(
            f"{folder}: cannot write a scratch file to measure the device with "
            f"({(error.strerror or str(error)).lower()}); free some space, or name a folder on the same disk "
            "that can be written to."
        ) from None


def model_path(path: Path) -> Path:
    """Where the model of the file system under `path` is kept: named after its number, type and size."""
    folder = folder_of(path)
    number, space = os.stat(folder).st_dev, os.statvfs(folder)
    name = f"{mount_of(folder).kind}-{os.major(number)}-{os.minor(number)}-{space.f_blocks * space.f_frsize}"
    return cache_root() / "devices" / f"{name}.json"


def load(path: Path) -> DeviceModel | None:
    """The kept model of the file system under `path`; None if there is none, or one of another format."""
    try:
        return DeviceModel.from_dict(json.loads(model_path(path).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(model: DeviceModel, path: Path) -> Path:
    """Keep the model of the file system under `path`, in the place of an older one; returns the file."""
    target = model_path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_text(json.dumps(model.to_dict(), indent=1) + "\n")
        os.replace(part, target)
    except OSError as error:
        raise EdgeError(
            f"{target}: cannot keep the measured device ({(error.strerror or str(error)).lower()}); free "
            "some space or fix the folder, or set EDGELLM_CACHE to a folder elsewhere."
        ) from None
    return target


def load_or_probe(
    path: Path, *, again: bool = False, advance: Advance = lambda done, total: None
) -> DeviceModel:
    """The kept model of the file system under `path`, or a new one, measured (some 25 s) and kept."""
    model = None if again else load(path)
    if model is None:
        model = probe(path, advance=advance)
        save(model, path)
    return model

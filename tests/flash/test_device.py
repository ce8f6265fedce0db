"""The cost model on tables made up by hand, and the probe on a small file of the real disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.flash import probe as probing
from edgellm.flash.device import Cell, DeviceModel, fit
from edgellm.flash.files import device_name
from edgellm.flash.probe import load, load_or_probe, model_path, probe

SMALL = {"sizes": (4096, 65536, 1 << 20), "depths": (1, 4), "scratch_bytes": 8 << 20, "budget_s": 0.5}
KIB = 1024


def made_up(
    cost: Callable[[int, int, bool], float], sizes=(4096, 16384, 65536), depths=(1, 4, 32)
) -> DeviceModel:
    """A device whose reads of b bytes at depth d take cost(b, d, direct) seconds."""
    cells = [
        Cell(pattern, direct, b, d, 10, cost(b, d, direct), cost(b, d, direct) / 10, 0.0)
        for direct in (True, False)
        for pattern, which in (("random", sizes), ("sequential", sizes[-1:]))
        for b in which
        for d in depths
    ]
    return DeviceModel(
        "/", "sda", "ext4", "6.1", "2026-01-01", "uring", "io_uring", True, 1 << 20, tuple(cells)
    )


def affine(request: float, speed: float) -> DeviceModel:
    return made_up(lambda b, d, direct: (request / d + b / speed) * (1 if direct else 2))


def test_the_fit_finds_the_coefficients_that_made_the_times():
    found = fit(4, [4096, 8192, 1 << 20], [11e-6 + b / 2e9 for b in (4096, 8192, 1 << 20)])
    assert found.request_seconds == pytest.approx(11e-6)
    assert found.bytes_per_second == pytest.approx(2e9)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.gap_bytes == pytest.approx(22000, abs=1)


def test_the_fit_is_the_least_of_the_relative_errors():
    sizes, times = np.array([4096.0, 16384, 65536, 262144]), np.array([20e-6, 22e-6, 50e-6, 160e-6])
    found = fit(1, sizes.tolist(), times.tolist())

    def error(request: float, per_byte: float) -> float:
        return float(np.sqrt((((request + sizes * per_byte) / times - 1) ** 2).mean()))

    best = error(found.request_seconds, 1 / found.bytes_per_second)
    assert found.error == pytest.approx(best)
    for up in (0.97, 1, 1.03):
        for along in (0.97, 1, 1.03):
            assert error(found.request_seconds * up, along / found.bytes_per_second) >= best


@pytest.mark.parametrize(
    ("times", "cost", "gap"), [([1e-6, 3e-6, 9e-6], 0, 0), ([9e-6, 8e-6, 7e-6], 7.9e-6, None)]
)
def test_the_fit_has_no_negative_coefficients(times, cost, gap):
    found = fit(1, [1000, 2000, 4000], times)
    assert found.request_seconds == pytest.approx(cost, rel=0.02)
    assert found.bytes_per_second > 0
    if gap is not None:
        assert found.gap_bytes == gap


def test_where_longer_requests_take_no_longer_the_gap_is_the_longest_that_was_measured():
    found = fit(1, [1000, 2000, 4000], [9e-6, 8e-6, 7e-6])
    assert found.bytes_per_second == np.inf
    assert found.gap_bytes == 4000


def test_seconds_are_the_measured_ones_at_the_measured_points():
    model = affine(12e-6, 1e9)
    for b in model.sizes():
        for d in model.depths():
            assert model.seconds(100, b, d) == pytest.approx(100 * (12e-6 / d + b / 1e9))
            assert model.seconds(100, b, d, direct=False) == pytest.approx(200 * (12e-6 / d + b / 1e9))
            assert model.cpu_seconds(100, b, d) == pytest.approx(10 * (12e-6 / d + b / 1e9))


def test_seconds_between_the_measured_points_follow_a_power_law():
    model = made_up(lambda b, d, direct: 1e-9 * b**0.7 / d**0.4)
    assert model.seconds(50, 10000, 7) == pytest.approx(50 * 1e-9 * 10000**0.7 / 7**0.4)


def test_fewer_requests_than_the_depth_are_in_flight_by_themselves():
    model = affine(12e-6, 1e9)
    assert model.seconds(4, 4096, 32) == pytest.approx(model.seconds(4, 4096, 4))
    assert model.seconds(1, 4096, 32) == pytest.approx(12e-6 + 4096 / 1e9)
    assert model.seconds(0.5, 4096, 32) == pytest.approx(0.5 * model.seconds(1, 4096, 1))
    assert model.seconds(0, 4096, 32) == 0


def test_a_request_longer_than_measured_counts_as_several():
    model = affine(12e-6, 1e9)
    assert model.seconds(1, 3 * 65536, 1) == pytest.approx(3 * model.seconds(1, 65536, 1))
    both = model.seconds(4, 65536, 4) + model.seconds(4, 16384, 4)
    assert model.seconds(4, 65536 + 16384, 4) == pytest.approx(both)


@pytest.mark.parametrize(
    ("n", "nbytes", "depth"), [(100, 4095, 4), (100, 4096, 33), (100, 4096, 0.5), (-1, 4096, 4)]
)
def test_nothing_is_extrapolated(n, nbytes, depth):
    with pytest.raises(
        EdgeError, match=r"sda: .* outside of what was measured .*from 4096 bytes, depth 1 to 32"
    ):
        affine(12e-6, 1e9).seconds(n, nbytes, depth)


def test_a_depth_that_was_not_measured_has_no_fit():
    with pytest.raises(EdgeError, match=r"depth 2 were not measured, only .* depths 1, 4, 32"):
        affine(12e-6, 1e9).fit(2)


def test_a_file_system_without_direct_reads_has_none_in_its_model():
    whole = affine(12e-6, 1e9)
    cells = tuple(cell for cell in whole.cells if not cell.direct)
    model = DeviceModel(**{**vars(whole), "direct": False, "cells": cells})
    assert model.seconds(1, 4096, 1) == pytest.approx(2 * (12e-6 + 4096 / 1e9))
    with pytest.raises(EdgeError, match="ext4 has no reads past the page cache"):
        model.seconds(1, 4096, 1, direct=True)


def test_longest_is_where_the_throughput_has_all_but_reached_its_best():
    speeds = {4096: 100e6, 16384: 960e6, 65536: 1000e6}
    model = made_up(lambda b, d, direct: b / (speeds[b] if d == 4 else 1e6 * b))
    assert model.longest(4) == 16384
    assert model.longest(1) == 65536


def test_a_model_survives_json():
    model = affine(12e-6, 1e9)
    assert DeviceModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    with pytest.raises(ValueError, match="format"):
        DeviceModel.from_dict({**model.to_dict(), "format": 0})


def test_a_probe_measures_every_cell_in_about_its_time_and_leaves_nothing(tmp_path, engine):
    calls = []
    start = time.monotonic()
    model = probe(tmp_path, **SMALL, engine=engine, advance=lambda *step: calls.append(step))
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []
    modes = [True, False] if model.direct else [False]
    assert [(c.pattern, c.direct, c.nbytes, c.depth) for c in model.cells] == [
        *[("random", mode, b, d) for mode in modes for b in SMALL["sizes"] for d in SMALL["depths"]],
        *[("sequential", mode, 1 << 20, d) for mode in modes for d in SMALL["depths"]],
    ]
    assert all(cell.requests >= 2 and cell.seconds > 0 and cell.cpu_seconds >= 0 for cell in model.cells)
    assert model.kind == engine
    assert model.device == device_name(tmp_path)
    assert model.scratch_bytes == 8 << 20
    total = calls[0][1]
    assert calls == [(i + 1, total) for i in range(len(calls))]
    assert len(calls) >= len(model.cells)
    # A MiB takes longer than 4 KiB, whatever else the machine does.
    assert model.seconds(1, 1 << 20, 1) > model.seconds(1, 4096, 1)


def test_the_probe_empties_the_page_cache_before_buffered_reads(tmp_path, monkeypatch):
    from edgellm.flash.reader import Reader

    events, real = [], Reader.read
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: events.append(call[1:]))
    monkeypatch.setattr(Reader, "read", lambda self, *spans: (events.append(self.direct), real(self, *spans)))
    probe(tmp_path, **SMALL)
    assert events.count(False) >= 8
    before = [events[i - 1] for i, event in enumerate(events) if event is False]
    assert set(before) == {(0, 0, os.POSIX_FADV_DONTNEED)}


def test_the_probe_reads_random_places_once_each(tmp_path, monkeypatch):
    from edgellm.flash.reader import Reader

    batches, real = [], Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, *spans: (batches.append(spans[:2]), real(self, *spans)))
    probe(tmp_path, **SMALL)
    backward = 0
    for offsets, lengths in batches:
        assert len(set(offsets.tolist())) == len(offsets)
        assert (offsets + lengths <= 8 << 20).all()
        backward += bool((np.diff(offsets) < 0).any())
    assert backward > len(batches) / 4


def test_a_file_names_the_disk_that_it_lies_on(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert model_path(tmp_path / "model.gguf") == model_path(tmp_path)
    with pytest.raises(EdgeError, match="missing: there is no such file or folder"):
        probe(tmp_path / "missing")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 20))
    with pytest.raises(
        EdgeError, match=rf"{tmp_path.name}: .* takes 4.2 MB of free space, and there are 3.1 MB"
    ):
        probe(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_gets_a_small_file(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=9 << 20))
    assert probe(tmp_path, **SMALL).scratch_bytes == 4 << 20


def test_a_disk_that_fills_up_while_it_is_measured_is_one_sentence(tmp_path, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        EdgeError, match=r"cannot write a scratch file .*no space left on device.*free some space"
    ):
        probe(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    def denied(**options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(probing.tempfile, "TemporaryFile", denied)
    with pytest.raises(EdgeError, match=r"permission denied.*name a folder on the same disk"):
        probe(tmp_path, **SMALL)


def test_an_error_of_the_disk_names_the_folder_and_not_a_number(tmp_path, monkeypatch):
    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(EdgeError, match=rf"^{tmp_path} \(scratch file\): .*input/output error"):
        probe(tmp_path, **SMALL, engine="threads")


def test_an_interrupted_probe_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(tmp_path, **SMALL, advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_writer_gets_a_smaller_file(tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(probing, "CHUNK", 1 << 20)
    monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(0.06), real(fd)))
    found = probe(tmp_path, **SMALL)
    assert found.scratch_bytes in (2 << 20, 3 << 20)


@pytest.mark.usefixtures("own_cache")
def test_a_disk_is_measured_once_and_again_when_asked(tmp_path, monkeypatch):
    measured = []

    def stand_in(path: Path, **options: object) -> DeviceModel:
        measured.append(path)
        return affine(12e-6 * len(measured), 1e9)

    monkeypatch.setattr(probing, "probe", stand_in)
    assert load(tmp_path) is None
    first = load_or_probe(tmp_path)
    assert load_or_probe(tmp_path) == load(tmp_path) == first
    second = load_or_probe(tmp_path, again=True)
    assert second != first
    assert load_or_probe(tmp_path) == second
    assert len(measured) == 2
    model_path(tmp_path).write_text("{")
    load_or_probe(tmp_path)
    assert len(measured) == 3
    assert [path.suffix for path in model_path(tmp_path).parent.iterdir()] == [".json"]


def test_a_cache_that_cannot_be_written_is_one_sentence(own_cache, tmp_path, monkeypatch):
    own_cache.write_text("a file where the folder should be")
    monkeypatch.setattr(probing, "probe", lambda path, **options: affine(12e-6, 1e9))
    with pytest.raises(EdgeError, match=r"cannot keep the measured device .* EDGELLM_CACHE"):
        load_or_probe(tmp_path)

"""Packed weights on disk: made once, mapped afterwards, and never believed when they do not fit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor, packed_file, packing, weights
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.hub import packs
from edgellm.models import build_program

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"
TOKENS = np.arange(1, 20)


@pytest.fixture
def packed_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packs of this test's own; kernels come from the ordinary cache."""
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    monkeypatch.setattr(packs, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a golden model that a test may change."""
    return Path(shutil.copytree(GOLDENS / "qwen2", tmp_path / "qwen2"))


def start(model: Path) -> tuple[NativeExecutor, np.ndarray]:
    """A start of the executor, and the logits that it computes."""
    checkpoint = open_checkpoint(model)
    native = NativeExecutor(build_program(checkpoint), checkpoint, threads=2)
    logits = native.new_session(32).forward(TOKENS)
    native.close()
    return native, logits


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the weights that were packed, in order."""
    names: list[str] = []

    def counted(tensor: object, weight: object, *rest: object) -> None:
        names.append(str(weight))
        packing.pack_tiles(tensor, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "pack_tiles", counted)
    return names


def test_second_start_maps_the_pack_of_the_first(model: Path, packed_dir: Path, packings: list[str]) -> None:
    first, expected = start(model)
    (file,) = packed_dir.iterdir()
    assert packings
    assert first.weights_source == f"mapped from {file}"
    packings.clear()
    content = file.read_bytes()
    second, logits = start(model)
    assert packings == []
    assert second.weights_source == f"mapped from {file}"
    np.testing.assert_array_equal(logits, expected)
    assert file.read_bytes() == content


def test_packed_into_memory_and_mapped_are_the_same_bytes(
    model: Path, packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, expected = start(model)
    monkeypatch.setenv("EDGELLM_PACKED", "off")
    in_memory, logits = start(model)
    assert in_memory.weights_source == "packed into memory (EDGELLM_PACKED=off)"
    np.testing.assert_array_equal(logits, expected)
    (file,) = packed_dir.iterdir()
    arena = in_memory._store._arena[: in_memory._store.nbytes]
    assert file.read_bytes()[-len(arena) :] == arena.tobytes()
    assert mapped.weights_bytes == len(arena)


def test_windows_smaller_than_a_tile_pack_the_same(
    model: Path, packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(model)
    (file,) = packed_dir.iterdir()
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(weights, "WINDOW", 4096)
    start(model)
    assert file.read_bytes() == content


def test_source_is_not_read_when_there_is_a_pack(
    model: Path, packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(model)
    checkpoint = open_checkpoint(model)
    program = build_program(checkpoint)
    for tensor in checkpoint.tensors.values():
        object.__setattr__(tensor, "data", None)
    native = NativeExecutor(program, checkpoint)
    assert np.isfinite(native.new_session(32).forward(TOKENS)).all()
    native.close()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(packs.MAGIC) + 5] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def older_layout(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"layout": "', b'"layout": "0', 1)[:-1])


@pytest.mark.parametrize("spoil", [flip, cut, older_layout, lambda f: f.write_bytes(b"")])
def test_pack_that_does_not_fit_is_replaced(
    model: Path, packed_dir: Path, packings: list[str], spoil: Callable[[Path], None]
) -> None:
    _, expected = start(model)
    (file,) = packed_dir.iterdir()
    good = file.read_bytes()
    spoil(file)
    packings.clear()
    _, logits = start(model)
    assert packings
    np.testing.assert_array_equal(logits, expected)
    assert [f.read_bytes() for f in packed_dir.iterdir()] == [good]


def test_changed_model_is_packed_again_in_the_place_of_the_old_pack(
    model: Path, packed_dir: Path, packings: list[str]
) -> None:
    start(model)
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\0\0\0\0"
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    packings.clear()
    start(model)
    assert packings
    assert len(list(packed_dir.iterdir())) == 1


def test_model_that_changes_while_it_is_packed_is_refused(
    model: Path, packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*args: object) -> None:
        packing.pack_tiles(*args)  # type: ignore[arg-type]
        os.utime(model / "model.safetensors", ns=(1, 1))

    monkeypatch.setattr(weights, "pack_tiles", change)
    with pytest.raises(EdgeError, match="the model changed while it was read; run it again"):
        start(model)
    assert list(packed_dir.iterdir()) == []


def no_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(packed_file, "SPARE", 1 << 60)
    return "no space left on device"


def disk_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    room = iter([True, True])

    def write(file: int, data: np.ndarray, offset: int) -> None:
        if not next(room, False):
            raise OSError(28, os.strerror(28))
        packed_file.write_all(file, data, offset)

    monkeypatch.setattr(weights, "write_all", write)
    monkeypatch.setattr(weights, "WINDOW", 4096)
    return "no space left on device"


def file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.parent.mkdir()
    folder.write_bytes(b"")
    return "file exists"


@pytest.mark.parametrize("trouble", [no_space, disk_fills_up, file_in_the_way])
def test_disk_that_takes_no_pack_costs_a_warning_only(
    model: Path,
    packed_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    monkeypatch.setenv("EDGELLM_PACKED", "off")
    _, expected = start(model)
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    reason = trouble(packed_dir, monkeypatch)
    with caplog.at_level(logging.WARNING, "edgellm"):
        native, logits = start(model)
    np.testing.assert_array_equal(logits, expected)
    assert native.weights_source == f"packed into memory ({reason})"
    (message,) = caplog.messages
    assert f"cannot be kept ({reason}), so every start will pack them again" in message
    assert not packed_dir.is_dir() or list(packed_dir.iterdir()) == []


def test_unknown_value_of_the_variable_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_PACKED", "maybe")
    with pytest.raises(EdgeError, match="EDGELLM_PACKED=maybe has no meaning; set it to on or off"):
        start(model)


STARTS = """
import sys, numpy as np
from edgellm.executors.native import NativeExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.hub import packs
from edgellm.models import build_program
from pathlib import Path
packs.cache_root = lambda: Path(sys.argv[2])
checkpoint = open_checkpoint(sys.argv[1])
native = NativeExecutor(build_program(checkpoint), checkpoint)
assert "mapped from" in native.weights_source, native.weights_source
print(native.new_session(32).forward(np.arange(1, 20)).tobytes().hex())
"""


@pytest.mark.slow
def test_processes_that_pack_at_once_are_all_right(model: Path, packed_dir: Path) -> None:
    command = [sys.executable, "-c", STARTS, str(model), str(packed_dir.parent)]
    environment = {**os.environ, "EDGELLM_PACKED": "on"}
    for _ in range(3):
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(4)]
        answers = {process.communicate()[0] for process in running}
        assert [process.returncode for process in running] == [0] * 4
        assert len(answers) == 1
        (file,) = packed_dir.iterdir()
        file.unlink()


# What is kept, and what goes.


def test_pack_of_a_deleted_model_and_old_parts_go_with_the_next_packing(
    model: Path, packed_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    start(other)
    shutil.rmtree(other)
    for name, age in (("new.part", 0), ("old.part", 7200)):
        (packed_dir / name).write_bytes(b"x")
        os.utime(packed_dir / name, (1e9, packed_dir.stat().st_mtime - age))
    (packed_dir / "damaged.edgepack").write_bytes(b"nothing of ours")
    start(model)
    kept = sorted(f.name for f in packed_dir.iterdir())
    assert len(kept) == 2
    assert kept[0] == "new.part"
    assert kept[1].startswith("qwen2-")


def test_header_tells_what_is_inside(model: Path, packed_dir: Path) -> None:
    native, _ = start(model)
    (file,) = packed_dir.iterdir()
    with file.open("rb") as stream:
        assert stream.readline() == packs.MAGIC
        about = json.loads(stream.readline())
        rows = [json.loads(line) for line in stream.read().split(b"\n\n")[0].splitlines()]
    assert Path(about["model"]) == model
    assert packs.packed_from(file) == [model / "config.json", model / "model.safetensors"]
    assert about["bytes"] == native.weights_bytes
    assert {row["name"] for row in rows} >= set(native.describe())
    assert all(row["offset"] % 64 == 0 for row in rows)


def test_a_symbolic_link_has_the_pack_of_its_model(
    model: Path, packed_dir: Path, packings: list[str]
) -> None:
    start(model)
    link = model.with_name("link")
    link.symlink_to(model)
    packings.clear()
    start(link)
    assert packings == []
    assert len(list(packed_dir.iterdir())) == 1

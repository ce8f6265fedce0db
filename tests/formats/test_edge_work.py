"""A pack that is killed, or stopped by its disk, goes on where it was, to the very same bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import EdgeError
from edgellm.formats import edge_pack, edge_work
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import Packed, pack
from edgellm.formats.edge_verify import verify
from tests.formats.relu_model import write_relu
from tests.formats.tiny import LAYERS


def packed(source: Path, out: Path, **options: Any) -> Packed:
    return pack(open_checkpoint(source), out, mode="sparse-exact", **options)


@pytest.fixture
def relu(write_gguf: Callable[..., Path]) -> Path:
    return write_relu(write_gguf)


CHILD = """
import os, signal, sys
from pathlib import Path
from edgellm.formats import edge_pack as m
from edgellm.formats.checkpoint import open_checkpoint

where, source, out = sys.argv[1:]

def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)

def nth(count, original):
    def call(*args):
        nonlocal count
        count -= 1
        return original(*args) if count else die()
    return call

if where == "resident":
    write = m.write_gguf
    m.write_gguf = lambda path, keys, tensors, progress: write(path, keys, tensors, progress=die)
elif where == "first layer":
    m.section_sums = nth(1, m.section_sums)
elif where == "second layer":
    m.section_sums = nth(2, m.section_sums)
elif where == "finished layer":
    finish = m.Work.finish_layer
    m.Work.finish_layer = lambda *args: (finish(*args), die())
elif where == "checksums":
    m._sha256 = die
elif where == "manifest":
    m._check_result = die
elif where == "name":
    place = m.replace_folder
    m.replace_folder = lambda *args: (place(*args), die())
m.pack(open_checkpoint(Path(source)), Path(out), mode="sparse-exact")
"""


def killed(where: str, source: Path, out: Path) -> None:
    result = subprocess.run([sys.executable, "-c", CHILD, where, source, out], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("where", "done"),
    [
        ("resident", 0),
        ("first layer", 0),
        ("second layer", 1),
        ("finished layer", 1),
        ("checksums", 2),
        ("manifest", 2),
    ],
)
def test_what_was_killed_goes_on_and_is_the_same(relu: Path, tmp_path: Path, where: str, done: int) -> None:
    out, notes = tmp_path / "m.edge", []
    killed(where, relu, out)
    assert not out.exists()
    packed(relu, out, note=notes.append)
    assert notes == [f"{out}: found an unfinished pack, {done} of {LAYERS} layers done; it goes on there."]
    packed(relu, tmp_path / "whole.edge")
    assert contents(out) == contents(tmp_path / "whole.edge")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.edge", "tiny.gguf", "whole.edge"]


def test_a_bundle_under_its_name_is_whole(relu: Path, tmp_path: Path) -> None:
    killed("name", relu, tmp_path / "m.edge")
    assert verify(tmp_path / "m.edge") == []
    assert open_checkpoint(tmp_path / "m.edge").bundle is not None


def test_other_options_start_anew(relu: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "m.edge", []
    killed("manifest", relu, out)
    packed(relu, out, down="q8_0", note=notes.append)
    assert len(notes) == 1
    assert "starting anew" in notes[0]
    packed(relu, tmp_path / "whole.edge", down="q8_0")
    assert contents(out) == contents(tmp_path / "whole.edge")


@pytest.mark.parametrize("damage", ["a byte", "shorter", "no ffn.bin", "progress", "layers", "losses"])
def test_what_is_missing_is_packed_again(relu: Path, tmp_path: Path, damage: str) -> None:
    out, work = tmp_path / "m.edge", tmp_path / "m.edge.packing"
    killed("checksums", relu, out)
    ffn, progress = work / "ffn.bin", work / "progress.json"
    if damage == "a byte":
        with ffn.open("r+b") as file:
            file.seek((4 << 20) + 100)
            file.write(b"\x55\xaa\x77")
    elif damage == "shorter":
        os.truncate(ffn, 3 << 20)
    elif damage == "no ffn.bin":
        ffn.unlink()
    elif damage == "progress":
        progress.write_text(progress.read_text()[:-9])
    elif damage == "layers":
        os.truncate(work / "layers.bin", 5)
    else:
        progress.write_text(json.dumps(json.loads(progress.read_text()) | {"losses": [{"up": 3}]}))
    packed(relu, out)
    packed(relu, tmp_path / "whole.edge")
    assert contents(out) == contents(tmp_path / "whole.edge")


def test_a_full_disk_keeps_what_was_done(relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = edge_pack._write_layer

    def full(plan: Any, layout: Any, file: Any, layer: int, meter: Any) -> Any:
        if layer == 1:
            raise OSError(28, "No space left on device")
        return write(plan, layout, file, layer, meter)

    monkeypatch.setattr(edge_pack, "_write_layer", full)
    out, notes = tmp_path / "m.edge", []
    with pytest.raises(EdgeError, match="No space left on device"):
        packed(relu, out)
    monkeypatch.undo()
    packed(relu, out, note=notes.append)
    assert "1 of 2 layers done" in notes[0]
    assert verify(out) == []


def test_two_packs_of_one_bundle_are_refused(relu: Path, tmp_path: Path) -> None:
    with (
        edge_work.locked_folder(tmp_path / "m.edge"),
        pytest.raises(EdgeError, match="another process is packing"),
    ):
        packed(relu, tmp_path / "m.edge")
    packed(relu, tmp_path / "m.edge")

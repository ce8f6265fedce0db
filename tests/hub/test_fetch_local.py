"""Pulling a file or folder of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.hub import fetch_local
from edgellm.hub.pull import pull, resolve
from tests.hub.webserver import gguf_bytes, leftovers

DATA = gguf_bytes(5_000)


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "My-Model"
    (folder / "onnx").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("code")
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("shares", [None, False])
def test_file_is_copied_not_linked(
    tmp_path: Path, shares: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shares: what this file system does with a request to share blocks, or a refusal."""
    if shares is not None:
        monkeypatch.setattr(fetch_local, "_share_blocks", lambda *_: shares)
    source = tmp_path / "Small.Q8_0.gguf"
    source.write_bytes(DATA)
    record = pull(str(source))
    assert record.name == "small.q8_0"
    assert record.sha256 == hashlib.sha256(DATA).hexdigest()
    with source.open("r+b") as stream:
        stream.write(b"XXXX")
    assert record.path.read_bytes() == DATA


def test_shared_blocks_are_hashed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a file system that can share blocks."""

    def share(source: int, target: int) -> bool:
        os.pwrite(target, os.pread(source, 1 << 20, 0), 0)
        return True

    monkeypatch.setattr(fetch_local, "_share_blocks", share)
    source = tmp_path / "m.gguf"
    source.write_bytes(DATA)
    record = pull(str(source))
    assert record.path.read_bytes() == DATA
    assert (record.sha256, record.bytes) == (hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_folder_takes_data_and_no_code(hf_folder: Path) -> None:
    record = pull(str(hf_folder))
    assert record.name == "my-model"
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in record.path.iterdir()) == names
    listing = subprocess.run(["sha256sum", *names], cwd=record.path, capture_output=True, check=True).stdout
    assert record.sha256 == hashlib.sha256(listing).hexdigest()
    assert record.bytes == sum((record.path / name).stat().st_size for name in names)


def test_folder_is_replaced_as_a_whole(hf_folder: Path, cache: Path) -> None:
    pull(str(hf_folder))
    (hf_folder / "tokenizer.json").unlink()
    (hf_folder / "model.safetensors").write_bytes(b"other weights")
    record = pull(str(hf_folder), force=True)
    assert leftovers(cache) == ["config.json", "model.safetensors", "record.json"]
    assert (record.path / "model.safetensors").read_bytes() == b"other weights"


def test_folder_without_a_model_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EdgeError, match="not a model folder"):
        pull(str(tmp_path / "empty"))
    assert leftovers(cache) == []


def test_a_bundle_is_used_where_it_lies(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "Model.edge"
    bundle.mkdir()
    (bundle / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    for spelled in (bundle, str(bundle), f"{bundle}/", "Model.edge", "Model.edge/", "./Model.edge"):
        assert resolve(spelled).resolve() == bundle
    with pytest.raises(EdgeError, match=r"Model\.edge: a bundle is used where it lies"):
        pull(str(bundle))
    assert leftovers(cache) == []
    with pytest.raises(EdgeError, match=r"none\.edge: no such model file or folder"):
        resolve("none.edge")


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"gone\.gguf: no such model file or folder"):
        pull(str(tmp_path / "gone.gguf"))


def test_file_of_another_kind_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(EdgeError, match="not a GGUF file"):
        pull(str(tmp_path / "m.gguf"))
    assert leftovers(cache) == []


def test_empty_file_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(EdgeError, match="not a GGUF file"):
        pull(str(tmp_path / "m.gguf"))
    assert leftovers(cache) == []

"""Pulling out of a wheel: a hand-made one, through the real pip, without an index."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.hub import fetch_pypi, store
from edgellm.hub.pull import pull
from edgellm.hub.sources import PypiSource
from edgellm.hub.store import Expected
from tests.hub.webserver import gguf_bytes, leftovers

DATA = gguf_bytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SOURCE = PypiSource("small-model", "1.0", "small_model/m.gguf")


def make_wheel(folder: Path, content: bytes = DATA, requires_python: str = ">=3.8") -> Path:
    path = folder / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small_model/__init__.py", "")
        archive.writestr("small_model/m.gguf", content)
        info = "small_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\nRequires-Python: {requires_python}\n"
            "Requires-Dist: not-on-any-index-at-all\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks, said through pip's own configuration."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {folder}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return folder


def test_model_comes_out_of_the_wheel_and_the_wheel_goes(index: Path, cache: Path) -> None:
    make_wheel(index)
    record = pull("pypi:small-model==1.0/small_model/m.gguf", sha256=SHA256)
    assert record.path.read_bytes() == DATA
    assert (record.sha256, record.bytes, record.name) == (SHA256, len(DATA), "m")
    assert leftovers(cache) == ["m.gguf", "record.json"]


def test_version_may_be_left_out(index: Path) -> None:
    make_wheel(index)
    assert pull("pypi:small-model/small_model/m.gguf").sha256 == SHA256


def test_distribution_that_no_index_has(index: Path, cache: Path) -> None:
    with pytest.raises(EdgeError, match=r"small-model==1.0: no package index in reach has it"):
        pull("pypi:small-model==1.0/small_model/m.gguf")
    assert leftovers(cache) == []


def test_version_that_no_index_has(index: Path, cache: Path) -> None:
    make_wheel(index)
    with pytest.raises(EdgeError, match=r"small-model==2.0: the package index has no such wheel"):
        pull("pypi:small-model==2.0/small_model/m.gguf")
    assert leftovers(cache) == []


def test_source_distribution_is_never_built(index: Path, tmp_path: Path) -> None:
    """Building one would run its code; only wheels are taken."""
    import tarfile

    project = tmp_path / "small-model-1.0"
    project.mkdir()
    proof = tmp_path / "backend-ran"
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (project / "backend.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    (project / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
    with tarfile.open(index / "small-model-1.0.tar.gz", "w:gz") as archive:
        archive.add(project, arcname=project.name)
    with pytest.raises(EdgeError, match="no package index in reach has it"):
        pull("pypi:small-model==1.0/small_model/m.gguf")
    assert not proof.exists()


def test_file_that_the_wheel_lacks_names_what_it_holds(index: Path, cache: Path) -> None:
    make_wheel(index)
    with pytest.raises(EdgeError, match=r"has no file small_model/x.gguf; it holds small_model/m.gguf"):
        pull("pypi:small-model==1.0/small_model/x.gguf")
    assert leftovers(cache) == []


def test_index_out_of_reach(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(EdgeError, match="pip cannot reach the package index"):
        pull("pypi:small-model==1.0/small_model/m.gguf")


def test_environment_without_pip_says_what_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(fetch_pypi, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EdgeError, match="ensurepip"):
        pull("pypi:small-model==1.0/small_model/m.gguf")
    assert leftovers(cache) == []


def test_environment_without_pip_lets_uv_run_one(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in `uv` that knows `uv tool run --quiet pip ...` alone; it checks the command, not uv."""
    make_wheel(index)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3 $4" = "tool run --quiet pip" ] || exit 9\nshift 4\n'
        f'exec {sys.executable} -m pip "$@"\n'
    )
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(fetch_pypi, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(uv.parent), prepend=os.pathsep)
    assert pull("pypi:small-model==1.0/small_model/m.gguf").sha256 == SHA256


def test_wrong_checksum_removes_the_file(tmp_path: Path) -> None:
    wheel, target = make_wheel(tmp_path), tmp_path / "out.gguf"
    with pytest.raises(EdgeError, match=f"expected sha256 {'1' * 64} but got {SHA256}"):
        fetch_pypi.extract(wheel, SOURCE, target, Expected("1" * 64), False)
    assert sorted(p.name for p in tmp_path.glob("out*")) == []


def test_damaged_wheel_leaves_nothing(tmp_path: Path) -> None:
    wheel, target = make_wheel(tmp_path), tmp_path / "out.gguf"
    raw = bytearray(wheel.read_bytes())
    raw[150_000] ^= 0xFF
    wheel.write_bytes(raw)
    with pytest.raises(EdgeError, match="is damaged"):
        fetch_pypi.extract(wheel, SOURCE, target, Expected(), False)
    assert list(tmp_path.glob("out*")) == []


def test_truncated_wheel_is_damaged(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:100_000])
    with pytest.raises(EdgeError, match="is damaged"):
        fetch_pypi.extract(wheel, SOURCE, tmp_path / "out.gguf", Expected(), False)


@pytest.mark.parametrize("declared", [len(DATA) - 50_000, len(DATA) + 50_000])
def test_wheel_that_lies_about_the_size_is_damaged(tmp_path: Path, declared: int) -> None:
    wheel = make_wheel(tmp_path)
    raw = wheel.read_bytes()
    assert raw.count(len(DATA).to_bytes(4, "little")) == 2  # local header and central directory
    wheel.write_bytes(raw.replace(len(DATA).to_bytes(4, "little"), declared.to_bytes(4, "little")))
    with pytest.raises(EdgeError, match="is damaged"):
        fetch_pypi.extract(wheel, SOURCE, tmp_path / "out.gguf", Expected(), False)
    assert list(tmp_path.glob("out*")) == []


def test_declared_size_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that promises 4 GB must not start to fill the disk."""
    wheel = make_wheel(tmp_path)
    raw = wheel.read_bytes()
    wheel.write_bytes(raw.replace(len(DATA).to_bytes(4, "little"), (0xFFFFFF00).to_bytes(4, "little")))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 2 * 10**9))
    monkeypatch.setattr(store.Part, "write", lambda self, chunk: pytest.fail("wrote before checking"))
    with pytest.raises(EdgeError, match=r"needs 4\.3 GB but .* has only 2\.0 GB free"):
        fetch_pypi.extract(wheel, SOURCE, tmp_path / "out.gguf", Expected(), False)


def test_size_other_than_the_catalogue_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="200000 bytes where 5 were expected"):
        fetch_pypi.extract(make_wheel(tmp_path), SOURCE, tmp_path / "out.gguf", Expected(size=5), False)


def test_full_disk_is_known_before_the_download(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**8))
    monkeypatch.setattr(fetch_pypi, "_download_wheel", lambda *_: pytest.fail("downloaded before checking"))
    with pytest.raises(EdgeError, match="free some space"):
        pull("smollm2")
    assert leftovers(cache) == []


def test_what_a_killed_pull_left_is_removed(index: Path, cache: Path) -> None:
    make_wheel(index)
    old = cache / "models" / "m" / ".download-old"
    old.mkdir(parents=True)
    (old / "small_model-1.0-py3-none-any.whl").write_bytes(b"half")
    (cache / "models" / "m" / "m.gguf.part").write_bytes(b"half of something longer" * 20_000)
    assert pull("pypi:small-model==1.0/small_model/m.gguf").sha256 == SHA256
    assert leftovers(cache) == ["m.gguf", "record.json"]

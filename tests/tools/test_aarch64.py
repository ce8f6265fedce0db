"""How the emulated aarch64 root is kept. Building one takes a network and a minute: `make test-aarch64`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from tools.aarch64 import root

PYPROJECT = """
[project]
dependencies = ["numpy>=1.26", "numba>=0.65"]
[project.optional-dependencies]
dev = ["edgellm[hf]", "pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6", "ruff>=0.17,<0.18"]
"""


@pytest.fixture
def debian(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An x86 machine that has Debian's tools, with an empty cache."""
    monkeypatch.setattr(root.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(root.platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "bookworm"})
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    return own_cache / "aarch64-root"


def test_requirements_are_the_project_s_and_what_its_tests_need() -> None:
    expected = ["numpy>=1.26", "numba>=0.65", "pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6"]
    assert root.requirements(PYPROJECT) == expected


def test_root_is_built_once(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(folder: Path, work: Path, wanted: list[str]) -> None:
        built.append(wanted)
        (folder / "python").write_text("")

    monkeypatch.setattr(root, "_build", build)
    first = root.emulated_python()
    assert first.exists()
    assert root.emulated_python() == first
    assert len(built) == 1


def test_interrupted_build_leaves_nothing(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, work: Path, wanted: list[str]) -> None:
        (folder / "python").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(root, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        root.emulated_python()
    assert list(debian.iterdir()) == []


def test_machine_without_apt_is_told_so(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(EdgeError, match=r"No apt-get here: .* use a Debian or Ubuntu"):
        root.emulated_python()


def test_aarch64_machine_needs_no_emulator(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root.platform, "machine", lambda: "aarch64")
    with pytest.raises(EdgeError, match="make test runs the same tests"):
        root.emulated_python()


def test_failing_program_is_quoted(debian: Path) -> None:
    with pytest.raises(EdgeError, match="sh failed while the aarch64 root was built: no such mirror"):
        root._run("sh", "-c", "echo reading; echo no such mirror >&2; exit 100")

"""A command in a memory cgroup gets no more than its limit. Needs root, as the tool does."""

from __future__ import annotations

import sys

import pytest

from edgellm.errors import EdgeError
from tools.cgroup.__main__ import main
from tools.cgroup.group import Group, available, run_limited

LIMIT = 96 << 20
needs_root = pytest.mark.skipif(not available(), reason="no memory cgroup can be made here")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@needs_root
def test_memory_and_page_cache_are_counted(tmp_path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(200 << 20))
    code = f"keep = bytearray(40 << 20); data = open({str(path)!r}, 'rb').read(1)"
    outcome = run_limited(python(code), LIMIT)
    assert outcome.status == 0
    assert 40 << 20 < outcome.peak <= LIMIT
    assert not outcome.killed
    forget = "os.fsync(f.fileno()); os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)"
    code = f"import os; f = open({str(path)!r}, 'rb+'); {forget}\nwhile f.read(1 << 20): pass"
    outcome = run_limited(python(code), LIMIT)
    assert outcome.status == 0
    assert outcome.hits > 0
    assert outcome.peak <= LIMIT


@needs_root
def test_too_much_memory_is_refused() -> None:
    outcome = run_limited(python("keep = b'x' * (300 << 20)"), LIMIT)
    assert outcome.killed
    assert outcome.status != 0


@needs_root
def test_the_group_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(LIMIT)
    assert group.path.exists()
    group.remove()
    assert not group.path.exists()


@needs_root
def test_the_command_tells_the_peak_and_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--memory", "96MiB", "--", *python("raise SystemExit(7)")]) == 7
    assert "of 96.0 MiB" in capfd.readouterr().err


def test_without_cgroups_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(EdgeError, match="has no memory cgroups"):
        Group(LIMIT, root=tmp_path)


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--memory", "1GiB"])
    assert caught.value.code == 2

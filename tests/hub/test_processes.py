"""Pulls that share a cache, die, or meet a real limit of the system: each in a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.hub.pull import pull
from edgellm.hub.registry import pulled
from tests.hub.webserver import Page, Server, gguf_bytes, leftovers

DATA = gguf_bytes(400_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


PULL = "import sys; from edgellm.hub.pull import pull; print(pull(sys.argv[1]).sha256)"


def test_two_pulls_of_one_model_fetch_it_once(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, chunk=40_000, pause_s=0.1)
    first = start(PULL, server.url("/m.gguf"))
    while not server.requests:
        assert first.poll() is None
        time.sleep(0.01)
    second = start(PULL, server.url("/m.gguf"))
    answers = [process.communicate(timeout=30) for process in (first, second)]
    assert [out.strip() for out, _ in answers] == [SHA256, SHA256]
    assert "waiting for it" in answers[1][1]
    assert len(server.requests) == 1


def test_killed_pull_leaves_a_part_that_the_next_one_continues(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, chunk=10_000, pause_s=0.02)
    code = f"from edgellm.hub import fetch_url; fetch_url.SYNC_BYTES = 50_000\n{PULL}"
    process = start(code, server.url("/m.gguf"))
    part = cache / "models" / "m" / "m.gguf.part"
    while not (part.exists() and part.stat().st_size > 120_000):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert leftovers(cache) == ["m.gguf.part", "m.gguf.part.json"]
    assert pulled() == []
    page.pause_s = 0.0
    assert pull(server.url("/m.gguf"), sha256=SHA256).path.read_bytes() == DATA
    offset = int((server.ranges()[-1] or "").removeprefix("bytes=").removesuffix("-"))
    assert 100_000 <= offset < len(DATA)
    assert leftovers(cache) == ["m.gguf", "record.json"]


def test_interrupted_pull_keeps_all_but_the_bytes_in_flight(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, chunk=10_000, pause_s=0.1)
    process = start(PULL, server.url("/m.gguf"))
    part = cache / "models" / "m" / "m.gguf.part"
    while not (part.exists() and part.stat().st_size > 50_000):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    kept = part.stat().st_size
    page.pause_s = 0.0
    assert pull(server.url("/m.gguf"), sha256=SHA256).path.read_bytes() == DATA
    offset = int((server.ranges()[-1] or "").removeprefix("bytes=").removesuffix("-"))
    assert kept // 2 < offset <= kept


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_write_that_the_system_refuses_is_one_sentence(server: Server, cache: Path) -> None:
    """A real short write, then a real error: the file size limit ends 100 000 bytes into the file."""
    server.pages["/m.gguf"] = Page(DATA)
    code = (
        "import resource, sys\nfrom edgellm.errors import EdgeError\nfrom edgellm.hub.pull import pull\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    pull(sys.argv[1])\nexcept EdgeError as error:\n    print(error)\n"
    )
    out, err = start(code, server.url("/m.gguf")).communicate(timeout=30)
    assert "m.gguf.part: cannot write the model (File too large)" in out
    assert "Traceback" not in err
    assert leftovers(cache) == ["m.gguf.part", "m.gguf.part.json"]
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=100000-"

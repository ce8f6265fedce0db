"""A process that was given a budget keeps it, and says what it says without one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.hub.paths import cache_root

PROMPT = "Once upon a time, in a small village by the sea,"
ROOM = 40  # MiB above the least, where most weights still come from flash
PROGRAM = """
import json, sys
import edgellm
from edgellm.bench import peak_rss_bytes
path, prompt, threads, dram = sys.argv[1:]
with edgellm.load(path, threads=int(threads), context=128, dram=int(dram) << 20 or None) as model:
    text = model.generate(prompt, 64, temperature=0.0).text
    store = model.executor.streamed
    streamed = store.residency.streamed_bytes if store else 0
print(json.dumps({"text": text, "peak": peak_rss_bytes(), "streamed": streamed}))
"""


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own for packed weights, with the kernels of the ordinary one."""
    kernels = cache_root() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (tmp_path / "kernels").symlink_to(kernels)
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGELLM_PACKED", "on")


def tell(path: Path, threads: int, dram: int) -> subprocess.CompletedProcess[str]:
    """Another process, within `dram` MiB (0: without a budget)."""
    command = [sys.executable, "-c", PROGRAM, str(path), PROMPT, str(threads), str(dram)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_budget_is_kept_and_changes_no_word(smollm2: Path, packs: None, threads: int) -> None:
    expected = json.loads(tell(smollm2, threads, 0).stdout)
    refused = re.search(r"at least (\d+) MiB", tell(smollm2, threads, 20).stderr)
    assert refused is not None
    dram = int(refused[1]) + ROOM
    found = json.loads(tell(smollm2, threads, dram).stdout)
    assert found["text"] == expected["text"]
    assert found["streamed"] > 20e6
    assert found["peak"] <= dram << 20

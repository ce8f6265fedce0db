"""OpenVINO GenAI as a second peer for prefill: it reads the same GGUF file.

It lives in a virtual environment of its own, in `peers/` of the cache.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from edgellm.hub.paths import cache_root
from tools.peers.programs import output

VERSION = "2026.4.1.0"
PACKAGES = (f"openvino-genai=={VERSION}", f"openvino-tokenizers=={VERSION}", "numpy")
CHILD = Path(__file__).with_name("genai_child.py")


def python() -> Path:
    """The interpreter of the environment, which is made if need be. Raises EdgeError if it cannot be."""
    home = cache_root() / "peers" / f"openvino-genai-{VERSION}"
    interpreter, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        print(f"fetching OpenVINO GenAI {VERSION}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)  # what an interrupted call may have left
        output([sys.executable, "-m", "venv", str(home)])
        output([str(interpreter), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *PACKAGES])
        ready.touch()
    return interpreter


def command(interpreter: Path, model: Path, threads: int, repetitions: int) -> list[str]:
    # -I: neither this folder's modules nor PYTHONPATH's may stand in for the environment's own.
    return [str(interpreter), "-I", str(CHILD), str(model), str(threads), str(repetitions)]


def parse(text: str) -> dict[str, list[float]]:
    """Test -> tokens per second of every repetition, from what the child printed last."""
    found: dict[str, list[float]] = json.loads(text.strip().rpartition("\n")[2])
    return found

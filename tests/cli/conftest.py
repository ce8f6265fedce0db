"""The command as a user runs it, on a tiny model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.cli.app import main
from tests.e2e.tiny_model import write_tiny_gguf

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "EDGELLM_PACKED": "off"}


@pytest.fixture
def edgellm(environment) -> Callable[..., subprocess.CompletedProcess]:
    """Run `edgellm ARGUMENTS...` and return the finished process, its output as text."""

    def call(*arguments, input="", **more) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "edgellm", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 120, "env": environment, **more}
        return subprocess.run(command, input=input, **options)

    return call


@pytest.fixture
def json_of(capsys, monkeypatch) -> Callable[..., dict]:
    """Run a command with --json in this process (which is quicker) and return the object it printed."""

    def call(*arguments, input="") -> dict:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
        code = main([*map(str, arguments), "--json"])
        output = capsys.readouterr()
        assert code == 0, output.err
        return json.loads(output.out)

    return call


@pytest.fixture(scope="session")
def sentence() -> Callable[[subprocess.CompletedProcess], str]:
    """What a failed command said; checks that it was one line of error, exit code 2 and no output."""

    def check(process) -> str:
        assert process.returncode == 2, process.stderr
        assert process.stdout == ""
        lines = process.stderr.splitlines()
        assert len(lines) == 1, process.stderr
        assert lines[0].startswith("edgellm")
        return lines[0]

    return check

"""Starting the programs that are compared, and reading what they print."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgellm.errors import EdgeError


def output(
    command: Sequence[str], *, merged: bool = False, environment: Mapping[str, str] | None = None
) -> str:
    """Standard output (with standard error behind it, if merged) of a program. EdgeError if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise failure(command, done.returncode, done.stderr)
    return done.stdout + done.stderr if merged else done.stdout


def outputs(commands: Sequence[Sequence[str]]) -> list[str]:
    """Standard output of programs that run at the same time. EdgeError if one fails."""
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        for command in commands
    ]
    results = [process.communicate() for process in started]
    for process, command, (_, errors) in zip(started, commands, results, strict=True):
        if process.returncode:
            raise failure(command, process.returncode, errors)
    return [found for found, _ in results]


def failure(command: Sequence[str], code: int, errors: str) -> EdgeError:
    """One sentence about a program that ended with an error: its last words."""
    last = errors.strip().rpartition("\n")[2]
    return EdgeError(f"{Path(command[0]).name} {shlex.join(command[1:4])} ended with {code}: {last}")

"""The object cache: reused without Numba, immune to damage, free of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.kernels.compile import compile_kernel, load_kernels, symbol_of
from edgellm.kernels.simd.level import host_levels, host_target

LOAD = """
import sys
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.simd.level import host_target
compiled = []
address = load_kernels(["elementwise/function=relu"], host_target(), lambda d, t: compiled.append(d))
assert address["elementwise/function=relu"] > 0
print(len(compiled), "numba" in sys.modules)
"""


def load_in_new_process(cache: Path, **environment: str) -> str:
    env = {**os.environ, "EDGELLM_CACHE": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_second_start_loads_the_object_without_importing_numba(tmp_path: Path) -> None:
    assert load_in_new_process(tmp_path) == "2 True"
    assert load_in_new_process(tmp_path) == "0 False"


def test_damaged_cache_file_is_compiled_again(tmp_path: Path) -> None:
    load_in_new_process(tmp_path)
    (cached,) = (tmp_path / "kernels").rglob("*.o")
    good = cached.read_bytes()
    for damage in (good[:100], good[:-1] + bytes([good[-1] ^ 1]), b""):
        cached.write_bytes(damage)
        assert load_in_new_process(tmp_path) == "2 True"
        assert load_in_new_process(tmp_path) == "0 False"


def test_cache_that_cannot_be_written_still_runs(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert load_in_new_process(blocked) == "2 True"


@pytest.mark.parametrize(
    "kernel",
    ["linear_q/bits=4,asym=1,block=32,planes=2", "attention/part=attend,kv=fp16,dim=64", "norm", "step"],
)
def test_object_code_needs_nothing_of_python_or_numba(kernel: str) -> None:
    target = host_target()
    code = compile_kernel(kernel, target)
    assert symbol_of(kernel).encode() in code
    for forbidden in (b"PyErr", b"PyObject", b"numba_", b"NRT_"):
        assert forbidden not in code


def test_kernels_are_loaded_once_per_process() -> None:
    first = load_kernels(["step"], host_target())
    assert load_kernels(["step"], host_target()) == first


def test_level_that_the_host_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_SIMD", "neon512")
    with pytest.raises(EdgeError, match="EDGELLM_SIMD=neon512 cannot run on this CPU; it can run: generic"):
        host_target()


@pytest.mark.parametrize("level", host_levels())
def test_forced_level_is_taken(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_SIMD", level)
    assert host_target().level == level

"""pytest plugin of the emulated run: which levels it tests, and who compiles.

Kernels are cross-compiled by tools.aarch64.worker, which the emulated process can start, since the kernel
below it is that of the machine. What calls compile_kernel or compile_function itself, and what runs in a
subprocess, still compiles under emulation: tests/kernels/test_primitives.py and test_compile.py do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import pytest

from edgellm.kernels import compile as compilation
from edgellm.kernels.simd.level import Target, host_levels

PRIMITIVES = "test_primitives.py"  # what it tests of the level generic is all that tells it from neon here
X86_ONLY = ("test_tile_registers", "test_tile_turns")  # no level here has tile registers
NOT_EMULATED = {
    "test_reservation_takes_memory_only_where_it_is_touched": "the emulator's own tables take memory too"
}


def pytest_configure(config: pytest.Config) -> None:
    expected = os.environ["AARCH64_LEVELS"].split(",")[-1]
    if host_levels()[-1] != expected:
        pytest.exit(f"QEMU_CPU={os.environ['QEMU_CPU']} has the levels {host_levels()}, not {expected}", 3)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the levels that another CPU model tests, and what makes no sense under emulation."""
    levels = os.environ["AARCH64_LEVELS"].split(",")
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        params = getattr(item, "callspec", None)
        level = params and params.params.get("target", params.params.get("level"))
        wanted = level is None or (level in levels and (level != "generic" or item.path.name == PRIMITIVES))
        wanted = wanted and not item.name.startswith(X86_ONLY)
        (kept if wanted else left_out).append(item)
        if item.name in NOT_EMULATED:
            item.add_marker(pytest.mark.skip(reason=NOT_EMULATED[item.name]))
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The test modules have taken their own compile_kernel by now; this is the loader's."""
    python = os.environ["AARCH64_NATIVE_PYTHON"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    worker = subprocess.Popen(
        [python, "-m", "tools.aarch64.worker"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def cross_compile(kernel: str, target: Target) -> bytes:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps([kernel, dataclasses.astuple(target)]).encode() + b"\n")
        worker.stdin.flush()
        code = worker.stdout.read(int.from_bytes(worker.stdout.read(8), "little"))
        if not code:
            raise RuntimeError(f"{kernel} could not be compiled for {target}, see above")
        return code

    compilation.compile_kernel = cross_compile
    session.config.add_cleanup(lambda: _stop(worker))


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.communicate()  # closes its input, which ends it

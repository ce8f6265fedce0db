"""`python -m tools.aarch64 [pytest's arguments]`: run the native tests under emulated aarch64 CPUs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.paths import cache_root
from tools.aarch64.root import REPOSITORY, emulated_python

# CPU model -> the levels that it tests, of which the last is the best that it has. qemu's default pointer
# authentication is slow, and no kernel uses it.
CPUS = {"cortex-a53": "generic,neon", "max,pauth-impdef=on": "i8mm", "cortex-a76": "dotprod"}
# In parts of about the same length, so that two cores have work to the end.
LONGEST = "tests/kernels/test_linear.py"
PARTS = [[LONGEST], ["tests/kernels", "tests/executors/test_native.py", "--ignore", LONGEST]]
# Minutes of Numba under emulation, and the same on every CPU model: the last one does it.
ONCE = "tests/kernels/test_compile.py"
ABOUT_COMPILING = "tests/kernels/test_cross.py"  # nothing in it runs for the architecture it compiles for


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.aarch64", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="emulators run at once")
    options, arguments = parser.parse_known_args()
    named = any(Path(a.split("::")[0]).exists() for a in arguments)
    parts = [arguments] if named else [[*part, *arguments] for part in PARTS]
    runs = [(cpu, part) for cpu in CPUS for part in parts]
    started = time.monotonic()
    try:
        python = emulated_python()
    except EdgeError as error:
        print(f"tools.aarch64: {error}", file=sys.stderr)
        return error.exit_code
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda run: _test(python, *run), runs))
    failed = sorted({cpu for (cpu, _), code in zip(runs, codes, strict=True) if code})
    seconds = time.monotonic() - started
    print(f"aarch64: {len(CPUS) - len(failed)} of {len(CPUS)} CPU models passed in {seconds:.0f} s")
    return 1 if failed else 0


def _test(python: Path, cpu: str, arguments: list[str]) -> int:
    """Exit code of pytest on a CPU model; its output line by line, with the model's name in front."""
    env = {
        **os.environ,
        "QEMU_CPU": cpu,
        "PYTHONPATH": os.pathsep.join([str(python.parent / "site"), str(REPOSITORY)]),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # this machine's interpreter would find it
        "EDGELLM_CACHE": str(cache_root()),
        "AARCH64_LEVELS": CPUS[cpu],
        "AARCH64_NATIVE_PYTHON": sys.executable,
    }
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.aarch64.plugin"]
    command += ["-m", "not slow", "--timeout", "600", "--ignore", ABOUT_COMPILING, *arguments]
    if cpu != list(CPUS)[-1]:
        command += ["--deselect", ONCE]
    with subprocess.Popen(
        command, env=env, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{cpu.split(',')[0]:10} | {line}", end="", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())

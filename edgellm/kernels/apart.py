"""Compiling in a process of its own: a compiler takes hundreds of MiB that it does not give back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

from edgellm.errors import EdgeError
from edgellm.kernels.compile import kernel_folder, load_kernels, symbol_of
from edgellm.kernels.simd.level import Target

_CODE = "from edgellm.kernels.apart import main; main()"


def compile_apart(
    kernels: Iterable[str], target: Target, progress: Callable[[int, int], None] | None = None
) -> None:
    """Have every kernel in the cache, so that load_kernels need not compile. progress: as there.

    Where the cache cannot be written to, nothing is gained: load_kernels will compile here.
    """
    folder = kernel_folder(target)
    missing = [k for k in dict.fromkeys(kernels) if not (folder / f"{symbol_of(k)}.o").exists()]
    if not missing:
        return
    work = json.dumps({"target": asdict(target), "kernels": missing})
    command = [sys.executable, "-c", _CODE, work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if progress:
                progress(int(line), len(missing))
    if process.returncode:
        raise EdgeError(f"The kernels could not be compiled (a compiler ended with {process.returncode}).")


def main() -> None:
    """The other process: writes how many kernels are done, a line each time."""
    work = json.loads(sys.argv[1])
    load_kernels(work["kernels"], Target(**work["target"]), lambda done, _: print(done, flush=True))

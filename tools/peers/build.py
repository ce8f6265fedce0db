"""Build llama.cpp's measuring programs from the source distribution of llama-cpp-python.

The programs go to `peers/` in edgellm's cache, in a folder named after the version and the build flags, so a
second call returns at once. EDGELLM_PEER_DIR names a folder of ready programs to use instead.

The build is not `-march=native` (GGML_NATIVE): on some virtual machines such a build stops with an illegal
instruction in decode. It names the instruction sets that /proc/cpuinfo reports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.paths import cache_root

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of the source distribution
PROGRAMS = ("llama-bench", "llama-perplexity", "llama-quantize", "llama-tokenize", "llama-completion")

BASE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",  # the programs are moved out of the build folder
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
# CMake option -> what /proc/cpuinfo must list for it on x86.
X86_OPTIONS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_BMI2": {"bmi2"},
    "GGML_AVX_VNNI": {"avx_vnni"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VNNI": {"avx512f", "avx512_vnni"},
    "GGML_AVX512_VBMI": {"avx512f", "avx512vbmi"},
    "GGML_AVX512_BF16": {"avx512f", "avx512_bf16"},
}
STEP = re.compile(r"^\[(\d+)/(\d+)\]")  # ninja's progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compile this many files at once")
    parser.add_argument(
        "--cmake", action="append", default=[], metavar="-DNAME=VALUE", help="another CMake flag"
    )


def run(options: argparse.Namespace) -> int:
    print(build(options.jobs or 1, tuple(options.cmake)))
    return 0


def cpu_flags(cpuinfo: str) -> set[str]:
    """Flags of the first processor in a /proc/cpuinfo text; empty where it lists none."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def cmake_flags(machine: str, flags: set[str]) -> tuple[str, ...]:
    """CMake flags for a machine ("x86_64", "aarch64", ...) with these CPU flags.

    Only x86 names its instruction sets one by one; elsewhere llama.cpp finds them itself.
    """
    if machine not in ("x86_64", "AMD64"):
        return BASE_FLAGS
    options = (f"-D{name}={'ON' if needs <= flags else 'OFF'}" for name, needs in X86_OPTIONS.items())
    return (*BASE_FLAGS, "-DGGML_NATIVE=OFF", *options)


def host_flags() -> tuple[str, ...]:
    """cmake_flags of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    return cmake_flags(platform.machine(), cpu_flags(cpuinfo.read_text()) if cpuinfo.exists() else set())


def program(name: str) -> Path:
    """Path of a built program; builds all of them first if need be. Raises EdgeError if it cannot."""
    given = os.environ.get("EDGELLM_PEER_DIR")
    folder = Path(given) if given else build(os.cpu_count() or 1)
    path = folder / name
    if not os.access(path, os.X_OK):
        raise EdgeError(f"{path}: no such program; unset EDGELLM_PEER_DIR or build it there.")
    return path


def build(jobs: int, extra: tuple[str, ...] = ()) -> Path:
    """Folder of the built programs, building them if they are not there yet. Raises EdgeError if it fails."""
    flags = (*host_flags(), *extra)
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    home = cache_root() / "peers" / f"llama.cpp-{VERSION}-{digest}"
    if (home / "build.json").exists():
        return home
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise EdgeError("No C++ compiler was found: install g++ or clang++ to build llama.cpp.")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=home.parent) as name:
        work = Path(name)
        _note(f"fetching the sources of {PACKAGE} {VERSION}")
        source = _sources(work)
        tools = _build_tools(work)
        _note(f"building {', '.join(PROGRAMS)} ({jobs} at a time)")
        _configure_and_compile(tools, source, work / "build", flags, jobs, home.parent / "build.log")
        ready = work / "ready"
        ready.mkdir()
        for built in PROGRAMS:
            shutil.move(work / "build" / "bin" / built, ready / built)
        (ready / "build.json").write_text(json.dumps({"version": VERSION, "flags": flags}, indent=1))
        shutil.rmtree(home, ignore_errors=True)  # what an interrupted move may have left
        ready.rename(home)
    _note(f"built {home}")
    return home


def _sources(work: Path) -> Path:
    """Fetch the source distribution, check its SHA-256, and unpack llama.cpp alone."""
    wanted = work / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE)
    _call([*download, "--dest", str(work), "-r", str(wanted)], work / "fetch.log")
    archive = next(work.glob("*.tar.gz"))
    inside = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
    with tarfile.open(archive) as opened:
        members = [m for m in opened.getmembers() if m.name.startswith(inside) and (m.isfile() or m.isdir())]
        opened.extractall(work, members)
    return work / inside


def _build_tools(work: Path) -> Path | None:
    """None where cmake and ninja are installed, else the folder of those that PyPI ships."""
    if shutil.which("cmake") and shutil.which("ninja"):
        return None
    _note("fetching cmake and ninja")
    venv = work / "tools"
    _call([sys.executable, "-m", "venv", str(venv)], work / "tools.log")
    _call(
        [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "cmake", "ninja"],
        work / "tools.log",
    )
    return venv / "bin"


def _configure_and_compile(
    tools: Path | None, source: Path, folder: Path, flags: tuple[str, ...], jobs: int, log: Path
) -> None:
    environment = dict(os.environ)
    if tools:
        environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder), *flags]
    compile_ = ["cmake", "--build", str(folder), "-j", str(jobs), "--target", *PROGRAMS]
    _call(configure, log, environment)
    _call(compile_, log, environment)


def _call(command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    """Run a step, its output into `log`, ninja's progress on standard error. Raises EdgeError if it fails."""
    with (
        log.open("w") as out,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            out.write(line)
            last = line.strip() or last
            if step := STEP.match(line):
                _progress(int(step.group(1)), int(step.group(2)))
    if process.returncode:
        raise EdgeError(f"{command[0]} failed with code {process.returncode}: {last}")


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r  {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done % 50 == 0 or done == total:
        _note(f"  {done}/{total}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

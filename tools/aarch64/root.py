"""An aarch64 Python with the project's dependencies, run by qemu-user on a machine of another architecture.

It is a folder `aarch64-root/<digest>/` of edgellm's cache: `debian/` (Debian's arm64 packages, unpacked and
never configured), `site/` (the dependencies' aarch64 wheels), the emulator, and `python`, which starts the
one in the other. qemu looks for files below `debian/` first and then in the machine's own tree, so this
needs neither root, nor chroot, nor binfmt_misc. apt and pip run here, with this machine's configuration.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.paths import cache_root

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("python3", "libstdc++6")  # the second is what the wheels expect of any Linux
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis")
EMULATOR = "qemu-aarch64-static"
OLDEST_GLIBC = 17  # minor version: no aarch64 wheels are built for an older one

PYTHON = f"""#!/bin/sh
here=${{0%/*}}
exec "$here/{EMULATOR}" -L "$here/debian" "$here/debian/usr/bin/python3" "$@"
"""
# The real program cannot be started without the emulator, so subprocesses have to start the script.
SITECUSTOMIZE = """import sys
from pathlib import Path
sys.executable = sys._base_executable = str(Path(__file__).parents[1] / "python")
"""


def emulated_python() -> Path:
    """Path of a program that is an aarch64 Python; built on the first call. Raises EdgeError if it fails."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        raise EdgeError("This machine is an aarch64 itself: make test runs the same tests, without emulator.")
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise EdgeError(
                f"No {tool} here: an arm64 Python is made of Debian's packages, so use a Debian or Ubuntu."
            )
    wanted = requirements((REPOSITORY / "pyproject.toml").read_text())
    recipe = repr((wanted, platform.freedesktop_os_release().get("VERSION_CODENAME"), OLDEST_GLIBC, PACKAGES))
    digest = hashlib.sha256(Path(__file__).read_bytes() + recipe.encode()).hexdigest()[:12]
    home = cache_root() / "aarch64-root" / digest
    if not home.exists():  # it appears whole
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=home.parent) as folder:
            root = Path(folder) / "root"
            root.mkdir()
            _build(root, Path(folder), wanted)
            with _another_may_be_first(home):
                root.rename(home)
    return home / "python"


@contextmanager
def _another_may_be_first(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        if not home.exists():
            raise


def requirements(pyproject: str) -> list[str]:
    """The requirements of pyproject.toml's text that the tests of the kernels and the executors need."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pytest brings it
    project = tomllib.loads(pyproject)["project"]
    names = {re.split(r"[^A-Za-z0-9_-]", r)[0]: r for r in project["optional-dependencies"]["dev"]}
    return [*project["dependencies"], *(names[name] for name in TEST_PACKAGES)]


def _build(root: Path, work: Path, wanted: list[str]) -> None:
    print(f"aarch64: fetching arm64 packages: {', '.join(PACKAGES)}", flush=True)
    debs = _download(work / "apt")
    print("aarch64: unpacking them", flush=True)
    for deb in debs:
        if deb.name.startswith("qemu-user"):
            _unpack_emulator(deb, work, root)
        else:
            _run("dpkg-deb", "-x", deb, root / "debian")
    (root / "python").write_text(PYTHON)
    (root / "python").chmod(0o755)
    libc = next(deb for deb in debs if deb.name.startswith("libc6_"))
    version = _run(root / "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    print(f"aarch64: fetching the dependencies' wheels for Python {version}", flush=True)
    minor = int(_run("dpkg-deb", "-f", libc, "Version").split(".")[1].split("-")[0])
    platforms = [f"manylinux_2_{n}_aarch64" for n in range(OLDEST_GLIBC, minor + 1)]
    _run(
        sys.executable, "-m", "pip", "-qq", "install", "--target", root / "site", "--only-binary", ":all:",
        "--implementation", "cp", "--python-version", version, "--platform", "manylinux2014_aarch64",
        *(option for name in platforms for option in ("--platform", name)), *wanted,
    )  # fmt: skip
    (root / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)


def _download(apt: Path) -> list[Path]:
    """The .deb files of PACKAGES, of what they depend on, and of the emulator for this machine.

    With this machine's sources, but lists, a status file and a cache of its own, in which no package is
    installed yet.
    """
    host = _run("dpkg", "--print-architecture").strip()
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # another user could not write below a private folder
    }
    command = ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]
    command.append(f"-oAPT::Architectures::={host}")
    _run(*command, "update")
    _run(*command, "install", "--yes", "--download-only", *PACKAGES, f"qemu-user-static:{host}")
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _unpack_emulator(deb: Path, work: Path, root: Path) -> None:
    _run("dpkg-deb", "-x", deb, work / "qemu")
    found = work / "qemu" / "usr" / "bin" / EMULATOR
    if not found.exists():
        raise EdgeError(f"{deb.name} has no {EMULATOR}: this distribution packs the emulator otherwise.")
    shutil.move(found, root / EMULATOR)


def _run(*command: str | Path) -> str:
    """Output of a program. Raises EdgeError with its last words when it fails."""
    try:
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise EdgeError(f"{command[0]} cannot be started ({error.strerror}).") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise EdgeError(f"{Path(command[0]).name} failed while the aarch64 root was built: {words[-1]}")
    return done.stdout

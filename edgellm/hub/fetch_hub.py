"""Fetch a model from a Hugging Face repository through huggingface_hub (its login, mirror and proxies).

Sizes and sha256 sums of large files come from the repository's listing, and every large file is checked
against its sum. Unfinished downloads lie in `hub.part/`, from where huggingface_hub goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import EdgeError
from edgellm.hub.folder import LEAVE_OUT, PATTERNS, commit_folder, wanted
from edgellm.hub.progress import is_terminal
from edgellm.hub.sources import HubSource
from edgellm.hub.store import Expected, Fetched, Part, disk_errors, require_space

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

TIMEOUT_S = 30.0


def fetch_hub(source: HubSource, target: Path, expected: Expected, show: bool) -> Fetched:
    """Fetch the file source.file to the file `target`, or without one the model to the folder `target`.

    Raises EdgeError: huggingface_hub is missing, no network, no such repository, revision or file, a gated
    repository, a full disk, a wrong checksum.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise EdgeError(
            f"{source.label}: this needs the package huggingface_hub; run `pip install huggingface_hub`."
        ) from None
    if not (show and is_terminal()):
        disable_progress_bars()
    staging = target.with_name("hub.part")
    with _explained(source):
        info = HfApi().model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    files = _files(info)
    if source.file is not None:
        if source.file not in files:
            raise EdgeError(f"{source.label}: the repository has no such file; {_ggufs(files)}.")
        known = files[source.file]
        if expected.size is None:
            expected = Expected(expected.sha256, known.size)
        _require(staging, [known], source)
        with _explained(source):
            path = hf_hub_download(source.repo, source.file, revision=info.sha, local_dir=staging)
        fetched = _take(
            Path(path), target, source, Expected(expected.sha256 or known.sha256, expected.size), info
        )
        shutil.rmtree(staging, ignore_errors=True)
        return fetched
    model = {name: known for name, known in files.items() if wanted(name)}
    if "config.json" not in model or not any(name.endswith(".safetensors") for name in model):
        raise EdgeError(f"{source.label}: the repository has no safetensors model; {_ggufs(files)}.")
    _require(staging, list(model.values()), source)
    with _explained(source):
        snapshot_download(
            source.repo,
            revision=info.sha,
            local_dir=staging,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(LEAVE_OUT),
        )
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's notes for resuming
    return commit_folder(staging, target, source.label, model, _licence(info))


def _take(path: Path, target: Path, source: HubSource, expected: Expected, info: ModelInfo) -> Fetched:
    """Verify the downloaded file and put it at `target`."""
    part_path = target.with_name(target.name + ".part")
    with disk_errors(part_path):
        size = path.stat().st_size
        os.replace(path, part_path)
    with Part(target, source.label) as part:
        part.resume(size)
        return part.commit(expected, _licence(info))


def _files(info: ModelInfo) -> dict[str, Expected]:
    return {
        s.rfilename: Expected(s.lfs.sha256 if s.lfs is not None else None, s.size)
        for s in info.siblings or []
    }


def _licence(info: ModelInfo) -> str | None:
    licence = info.card_data.get("license") if info.card_data is not None else None
    return ", ".join(licence) if isinstance(licence, list) else licence


def _require(staging: Path, files: list[Expected], source: HubSource) -> None:
    with disk_errors(staging):
        staging.mkdir(parents=True, exist_ok=True)
        present = sum(p.stat().st_size for p in staging.rglob("*") if p.is_file())  # of an earlier run
    require_space(staging, max(sum(f.size or 0 for f in files) - present, 0), source.label)


def _ggufs(files: dict[str, Expected]) -> str:
    names = [name for name in files if name.lower().endswith(".gguf")]
    if not names:
        return "it holds no GGUF file either"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"name one of its GGUF files: {', '.join(names[:5])}{more}"


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    """Turn huggingface_hub's errors into one sentence each."""
    from huggingface_hub import errors

    # httpx's or requests' HTTPError: which of them depends on huggingface_hub's version.
    transport: type[BaseException] = errors.HfHubHTTPError.__bases__[0]
    label = source.label
    try:
        yield
    except errors.GatedRepoError as error:
        raise EdgeError(
            f"{label}: access is gated; accept the terms on the model's page, then run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EdgeError(
            f"{label}: no such repository, or a private one; check the name or log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EdgeError(f"{label}: the repository has no such revision; check what follows '@'.") from error
    except errors.OfflineModeIsEnabled as error:
        raise EdgeError(f"{label}: HF_HUB_OFFLINE forbids downloads; unset it to pull.") from error
    except errors.LocalEntryNotFoundError as error:  # before the next: it was one in huggingface_hub 0.x
        raise EdgeError(f"{label}: cannot reach the hub; check the network and try again.") from error
    except errors.HfHubHTTPError as error:
        raise EdgeError(
            f"{label}: the hub answered HTTP {error.response.status_code}; try again later."
        ) from error
    except (transport, OSError) as error:
        of_network = not isinstance(error, OSError) or isinstance(error, ConnectionError)
        errno = None if of_network else getattr(error, "errno", None)
        reason = os.strerror(errno) if errno is not None else _first_line(error)
        advice = "check the network" if errno is None else "free some space or fix the folder"
        raise EdgeError(
            f"{label}: the transfer from the hub failed ({reason}); {advice} and run the same command again."
        ) from error


def _first_line(error: BaseException) -> str:
    plain = bool(error.args) and isinstance(error.args[0], str)  # requests nests other errors there
    return next(iter(str(error).splitlines()), "") if plain else type(error).__name__

"""A byte progress bar on standard error: nothing unless that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, "int | None"], None]  # (bytes done so far, bytes in all or None)


def is_terminal() -> bool:
    """Whether standard error is there and shown to a person."""
    return sys.stderr is not None and sys.stderr.isatty()


def note(text: str, show: bool) -> None:
    """One line on standard error."""
    if show and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def human(n_bytes: int) -> str:
    """12 300 000 -> "12.3 MB"."""
    from rich.filesize import decimal

    return decimal(n_bytes)


@contextmanager
def byte_bar(label: str, show: bool) -> Iterator[Advance]:
    """Yields a function that sets the bar; absolute figures, because a restart goes back to zero."""
    if not (show and is_terminal()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        Remaining(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(label), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

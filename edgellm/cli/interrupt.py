"""Ctrl-C while a model answers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.generate import Run


@contextmanager
def cancelling(run: Run) -> Iterator[None]:
    """While inside, Ctrl-C cancels `run`, which then ends between two tokens; a second one is raised.

    An exception in the middle of a native call could leave its threads at work on a freed session.
    """

    def cancel(number: int, frame: FrameType | None) -> None:
        if run.cancelled:
            raise KeyboardInterrupt
        run.cancelled = True

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

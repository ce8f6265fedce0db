"""When to stop: end tokens, stop strings, the token limit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from edgellm.errors import EdgeError

StopReason = Literal["stop", "end_of_turn", "length"]


class StopChecker:
    """Passes text through until the first stop string, holding back only what may be the start of one.

    Usage, per token: if is_end(id): break; emit(push(text)); if stopped: break. At the end: emit(flush()).
    reason: "stop" a stop string, "end_of_turn" an end token, "length" neither (the token limit).
    """

    def __init__(self, stop_strings: Sequence[str] = (), end_ids: Collection[int] = ()):
        if isinstance(stop_strings, str):
            stop_strings = (stop_strings,)
        if any(not stop for stop in stop_strings):
            raise EdgeError("A stop string is empty; leave it out or give at least one character.")
        self._stops = tuple(stop_strings)
        self._end_ids = frozenset(end_ids)
        self._held = ""  # not yet passed on: could be the start of a stop string
        self.reason: StopReason = "length"

    @property
    def stopped(self) -> bool:
        return self.reason != "length"

    def is_end(self, id: int) -> bool:
        """Whether this id ends the turn; its text must then not be pushed."""
        if not self.stopped and id in self._end_ids:
            self.reason = "end_of_turn"
        return self.reason == "end_of_turn"

    def push(self, text: str) -> str:
        """The part of what came so far that surely comes before any stop string; "" once stopped."""
        if self.reason == "stop":
            return ""
        self._held += text
        # the earliest start wins; a stop string that is complete wins over one that may yet become so,
        # unless that one starts earlier: then wait, for the cut would be there
        found = min((at for s in self._stops if (at := self._held.find(s)) >= 0), default=None)
        waits = self._first_partial(len(self._held) if found is None else found)
        if found is not None and waits >= found:
            out, self._held = self._held[:found], ""
            self.reason = "stop"
            return out
        out, self._held = self._held[:waits], self._held[waits:]
        return out

    def flush(self) -> str:
        """What was held back and turned out to be no stop string; call it once, at the end."""
        out, self._held = self._held, ""
        if self.reason == "stop":
            return ""
        found = min((at for s in self._stops if (at := out.find(s)) >= 0), default=None)
        if found is not None:
            self.reason = "stop"
            return out[:found]
        return out

    def _first_partial(self, limit: int) -> int:
        """Where the text's tail first equals the start of a stop string, at most `limit`."""
        longest = max((len(s) for s in self._stops), default=1)
        for at in range(max(0, len(self._held) - longest + 1), limit):
            tail = self._held[at:]
            if any(len(tail) < len(s) and s.startswith(tail) for s in self._stops):
                return at
        return limit

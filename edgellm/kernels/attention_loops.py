"""Loops over the heads of a group and over the head dimension, in pieces that fit the registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgellm.kernels.simd.emit import LANES, Emit

MOST_ROWS = 4  # heads whose results are summed at once


def over_rows(e: Emit, group: int, most: int, body: Callable[[Any, int], None]) -> None:
    """body(first row, rows) for a group of heads, `most` or fewer at once."""
    blocks = -(-group // most)
    size, more = divmod(group, blocks)

    def repeat(count: int, start: int, rows: int) -> None:
        def block(i: Any) -> list[Any]:
            body(e.offset(e.scaled(i, rows), start), rows)
            return []

        if count == 1:
            body(e.i64(start), rows)
        elif count:
            e.loop(e.i64(count), [], block)

    repeat(more, 0, size + 1)
    repeat(blocks - more, more * (size + 1), size)


def over_columns(e: Emit, width: int, at_once: int, body: Callable[[Any, int], None]) -> None:
    """body(first vector, vectors) over the head dimension, `at_once` vectors of it at a time."""

    def some(i: Any) -> list[Any]:
        body(e.scaled(i, at_once), at_once)
        return []

    whole, rest = divmod(width // LANES, at_once)
    if whole:
        e.loop(e.i64(whole), [], some)
    if rest:
        body(e.i64(whole * at_once), rest)

"""Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError


def print_json(value: Any) -> None:
    """One JSON object, readable, on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def note(line: str) -> None:
    """A line for the person, on standard error."""
    print(line, file=sys.stderr, flush=True)


def size(count: float) -> str:
    """A count of bytes as a person reads it: 91726912 -> "87.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def quantity(count: float) -> str:
    """A large count as the field writes it: 134515008 -> "134.5 M"."""
    for divisor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count:.0f}"


def printable(text: str) -> str:
    """Text from a file, with what could steer the terminal (escape sequences) replaced by "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises EdgeError with one sentence."""
    try:
        return path.read_bytes().decode("utf-8")  # bytes: line ends stay as they are
    except UnicodeDecodeError as error:
        raise EdgeError(
            f"{path}: not UTF-8 text (byte {error.start}); re-encode it as UTF-8 first."
        ) from None
    except OSError as error:
        raise EdgeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None

"""The models that edgellm knows by name: catalogue.json, shipped with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgellm.hub.sources import ShippedSource, parse_source

DEFAULT_MODEL = "smollm2"


@dataclass(frozen=True)
class Entry:
    """One catalogue model. `size` is in bytes; `sha256` is of the model file, not of what carries it."""

    name: str
    source: str
    file: str
    sha256: str
    size: int
    licence: str
    description: str

    @property
    def shipped(self) -> Path | None:
        """Where the file lies, if it comes with edgellm."""
        source = parse_source(self.source)
        return source.path if isinstance(source, ShippedSource) else None


@cache
def catalogue() -> dict[str, Entry]:
    """Every entry by name, in the file's order."""
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    return {item["name"]: Entry(**item) for item in json.loads(text)}

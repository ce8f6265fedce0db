"""Typed access to the key-value pairs of a model file: every number is checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgellm.errors import EdgeError

_LARGEST = 2**31 - 1
_MISSING = object()


class Keys:
    """Reads `values` of the file `path`; a key that is absent or null takes the default.

    Every method raises EdgeError, naming the file and the key, for a missing key without a default
    and for a value of the wrong kind or out of range.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = ""):
        self.path = path
        self.values = values
        self.prefix = prefix  # put before every key: "llama." in GGUF files

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def fail(self, key: str, what: str) -> NoReturn:
        raise EdgeError(f"{self.path}: {self.prefix}{key} {what}.")

    def get(self, key: str, default: Any = _MISSING) -> Any:
        value = self.values.get(self.prefix + key)
        if value is not None:
            return value
        if default is _MISSING:
            self.fail(key, "is missing from the metadata; the file is incomplete or of another kind")
        return default

    def integer(self, key: str, default: Any = _MISSING, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1; a list of equal ones (per layer) counts as one."""
        value = self.get(key, default)
        if isinstance(value, (np.ndarray, list)):
            items = set(np.asarray(value).reshape(-1).tolist())
            if len(items) != 1:
                self.fail(key, "differs from layer to layer, which is not supported")
            value = items.pop()
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            self.fail(key, f"should be a whole number of at least {least}, not {_shown(value)}")
        return value

    def number(self, key: str, default: Any = _MISSING, positive: bool = True) -> float:
        """A finite float, above zero unless `positive` is False."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e30:
            self.fail(key, f"should be a number, not {_shown(value)}")
        if not math.isfinite(value) or (value <= 0 if positive else value < 0):
            self.fail(key, f"should be a positive number, not {_shown(value)}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A positive float; None where the file has no such key, null or 0 (which means off)."""
        return (self.number(key, positive=False) or None) if key in self else None

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"should be true or false, not {_shown(value)}")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"should be a text, not {_shown(value)}")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """A dictionary, a copy; empty where the file has none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, f"should be a dictionary, not {_shown(value)}")
        return dict(value)


def _shown(value: object) -> str:
    """A value short enough for a sentence."""
    if isinstance(value, int) and not -(10**20) < value < 10**20:
        return "an enormous number"  # repr of an integer with more than 4300 digits raises
    if isinstance(value, (list, dict, np.ndarray)):
        return f"a {type(value).__name__} of {len(value)} items"
    text = repr(value[:40] if isinstance(value, str) else value)
    return text

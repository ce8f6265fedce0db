"""Sizes as people write them: 512MiB, 2GiB, 2GB; and windows: 5, auto."""

from __future__ import annotations

import re

from edgellm.errors import EdgeError

_FACTORS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes. A single letter counts in powers of 1024, as in llama.cpp and systemd."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _FACTORS or float(match[1]) == 0:
        raise EdgeError(f"{text!r} is not a size; write it as 512MiB, 2GiB or 2GB.")
    return int(float(match[1]) * _FACTORS[match[2]])


def parse_window(text: str | int) -> int:
    """Tokens; for auto policies.AUTO."""
    from edgellm.flash.policies import AUTO

    if isinstance(text, int):
        return text
    if text == "auto":
        return AUTO
    if not text.isdecimal() or int(text) == 0:
        raise EdgeError(f"{text!r} is not a window; write a number of tokens from 1 on, or auto.")
    return int(text)

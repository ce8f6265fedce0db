"""A file of random bytes, the engines that this machine has, and memory to read into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgellm.flash.uring import Ring, UringRefused
from edgellm.kernels.memory import address, reserve


def uring_refusal() -> str:
    """Why there is no io_uring here; "" if there is."""
    try:
        Ring(1).close()
    except UringRefused as refusal:
        return f"io_uring {refusal}"
    return ""


@pytest.fixture
def needs_uring() -> None:
    if reason := uring_refusal():
        pytest.skip(reason)


@pytest.fixture(params=["uring", "threads"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "uring" and (reason := uring_refusal()):
        pytest.skip(reason)
    return str(request.param)


@dataclass
class Content:
    """A file and what is in it."""

    path: Path
    bytes: np.ndarray  # uint8


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """8 MiB and a bit more, so that the end is not aligned."""
    random = np.random.default_rng(0).integers(0, 256, (8 << 20) + 1234, np.uint8)
    random.tofile(tmp_path / "file")
    return Content(tmp_path / "file", random)


@pytest.fixture
def memory() -> np.ndarray:
    """16 MiB of zeros that start at a page."""
    return reserve(16 << 20, huge_pages=False, what="a test")


def spans(memory: np.ndarray, lengths: np.ndarray, alignment: int = 4096) -> np.ndarray:
    """Addresses in `memory` for pieces of these lengths, one behind the other."""
    room = -(-np.asarray(lengths) // alignment) * alignment
    starts = np.cumsum(room) - room
    assert starts[-1] + room[-1] <= len(memory)
    return address(memory) + starts

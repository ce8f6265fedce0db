"""Mutated GGUF files either open or raise EdgeError: no crash, no hang, no allocation beyond the file."""

from __future__ import annotations

import os
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.formats.gguf import open_gguf

SLACK = 8 << 20  # bytes of Python objects that a small file may make
SECONDS = 20.0  # a hang, not a slow machine
EXTREMES = [0, 1, 2, 3, 8, 9, 31, 33, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def survives(path: Path, vocabulary: bool = True) -> bool:
    """Open `path` and read the metadata; whether it opened. Fails on anything but EdgeError."""
    tracemalloc.start()
    start = time.perf_counter()
    sentence = ""
    try:
        checkpoint = open_gguf(path)
        for key in checkpoint.metadata:
            if vocabulary or not key.startswith("tokenizer."):
                _ = checkpoint.metadata[key]
    except EdgeError as error:
        sentence = str(error)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not sentence or str(path.parent) in sentence
    assert seconds < SECONDS
    assert peak < path.stat().st_size + SLACK
    return not sentence


@pytest.fixture
def tiny(write_gguf: Callable[..., Path]) -> bytes:
    """A model with keys of every kind, small enough to be rewritten often."""
    keys = {
        "general.name": "tiny",
        "general.alignment": 32,
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(40)],
        "tokenizer.ggml.scores": [0.5] * 40,
        "tokenizer.ggml.add_bos_token": True,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 2.0,
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": [True, False],
    }
    return write_gguf("gemma3", keys).read_bytes()


def header_size(content: bytes) -> int:
    """Bytes up to the end of the last tensor's name, shape and offset, roughly."""
    return content.rindex(b".weight") + 64


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_of_the_header_may_change(tiny: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tiny)
    end = header_size(tiny)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        width = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 2**64 - 1)))
        content[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(content[:cut])
    survives(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400), keys=st.integers(0, 20), tensors=st.integers(0, 20))
def test_random_headers(tmp_path: Path, tail: bytes, keys: int, tensors: int) -> None:
    path = tmp_path / "fuzz.gguf"
    counts = tensors.to_bytes(8, "little") + keys.to_bytes(8, "little")
    path.write_bytes(b"GGUF\x03\0\0\0" + counts + tail)
    assert not survives(path)


def test_each_byte_of_the_header_inverted(tiny: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.gguf"
    opened = 0
    for at in range(0, header_size(tiny), 11):
        content = bytearray(tiny)
        content[at] ^= 0xFF
        path.write_bytes(content)
        opened += survives(path)
    assert opened > 0  # bytes of names and numbers that nothing depends on


def test_the_real_header_mutated(smollm2: Path, tmp_path: Path) -> None:
    """Seeded mutations of the default model's header, over a sparse file of the model's size."""
    with smollm2.open("rb") as file:
        header = file.read(1 << 21)
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(header)
    os.truncate(path, smollm2.stat().st_size)
    assert survives(path, vocabulary=False)
    rng = np.random.default_rng(5)
    numbers = [0, 8, 16, *(header.index(key) for key in (b"llama.block_count", b"llama.embedding_length"))]
    first_tensor = header.index(b"token_embd.weight")
    with path.open("r+b") as file:
        for _ in range(12):
            zone = rng.integers(3)
            if zone == 0:
                at = int(rng.choice(numbers)) + int(rng.integers(40))
            else:
                at = int(rng.integers(1062) if zone == 1 else first_tensor + rng.integers(16_000))
            value = int(rng.choice(np.array(EXTREMES, np.uint64)))
            file.seek(at)
            file.write(value.to_bytes(8, "little"))
            file.flush()
            survives(path, vocabulary=False)
            file.seek(at)
            file.write(header[at : at + 8])


def test_no_warnings_from_arithmetic(tiny: bytes, tmp_path: Path) -> None:
    """A number that wraps around in NumPy would warn."""
    path = tmp_path / "fuzz.gguf"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in range(0, header_size(tiny), 47):
            content = bytearray(tiny)
            content[at : at + 8] = b"\xff" * 8
            path.write_bytes(content)
            survives(path)

"""Damaged and unsuitable GGUF files: each gives one sentence that names the file and what is wrong."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.gguf import open_gguf

ARCH = ("general.architecture", "llama")
F32, Q4_0, IQ2_XXS = 0, 2, 16
ARRAY, STRING = 9, 8


def refused(path: Path) -> str:
    """The error's sentence, after checking that it names the file and ends properly."""
    tracemalloc.start()
    with pytest.raises(EdgeError) as caught:
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = path.stat().st_size if path.is_file() else 0
    assert peak < max(size, 4 << 20), "allocated more than the file holds"
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.gguf")
    assert "is a folder" in refused(tmp_path)


def test_empty_and_tiny_files(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF" + bytes(19)):
        path = tmp_path / "short.gguf"
        path.write_bytes(content)
        assert "too short to be a GGUF file" in refused(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"magic": b"PK\x03\x04"}, "is not a GGUF file (wrong magic)"),
        ({"magic": b"FUGG"}, "is a big-endian GGUF file"),
        ({"version": 1}, "has GGUF version 1, but edgellm reads 2 and 3"),
        ({"version": 4}, "has GGUF version 4, but edgellm reads 2 and 3"),
        ({"version": 3 << 24}, "is a big-endian GGUF file"),
        ({"tensor_count": 2**63}, f"claims {2**63} tensors, more than the 100000 allowed"),
        ({"key_count": 2**64 - 1}, f"claims {2**64 - 1} metadata keys, more than the 100000 allowed"),
        ({"tensor_count": 5}, "ends within its header"),
    ],
)
def test_preamble(raw_gguf: Callable[..., Path], change: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(raw_gguf([ARCH], **change))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (struct.pack("<IQ", STRING, 2**62), "ends within its header"),
        (struct.pack("<IIQ", ARRAY, 5, 2**61), "ends within its header"),
        (struct.pack("<IIQ", ARRAY, STRING, 2**60), "ends within its header"),
        (struct.pack("<IIQQ", ARRAY, STRING, 1, 2**64 - 1), "ends within its header"),
        (struct.pack("<IIQQ", ARRAY, STRING, 1, 2**64 - 9), "ends within its header"),
        (struct.pack("<IIQ", ARRAY, ARRAY, 1), "has a metadata array of type 9"),
        (struct.pack("<IIQ", ARRAY, 77, 1), "has a metadata array of type 77"),
        (struct.pack("<I", 13), "has a metadata value of unknown type 13"),
        (struct.pack("<IQ", STRING, 2) + b"\xc3\x28", "is not valid UTF-8"),
    ],
)
def test_metadata_values(raw_gguf: Callable[..., Path], value: bytes, sentence: str) -> None:
    assert sentence in refused(raw_gguf([("general.architecture", value)]))


def test_metadata_keys(raw_gguf: Callable[..., Path]) -> None:
    assert "has the metadata key general.architecture twice" in refused(raw_gguf([ARCH, ARCH]))
    assert "a name is not valid UTF-8" in refused(raw_gguf([(b"\xff\xfe", 1)]))
    assert "has the name 'a\\x1b[1m', which is not that of a tensor or key" in refused(
        raw_gguf([("a\x1b[1m", 1)])
    )
    assert "has the name 'kkkk" in refused(raw_gguf([("k" * 2000, 1)]))
    assert "has a name of 70000 bytes" in refused(raw_gguf([("k" * 70000, 1)]))
    assert "general.architecture is missing from the metadata" in refused(raw_gguf([("general.name", "x")]))


def test_invalid_token_is_found_when_the_vocabulary_is_read(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf(keys={"tokenizer.ggml.tokens": [f"token{i}" for i in range(40)]})
    path.write_bytes(path.read_bytes().replace(b"token7", b"token\xff"))
    metadata = open_gguf(path).metadata
    with pytest.raises(EdgeError, match=r"the value of tokenizer\.ggml\.tokens is not valid UTF-8"):
        metadata["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([("t", [32], F32, 0), ("t", [32], F32, 128)], "has the tensor t twice"),
        ([("t", [32], 999, 0)], "has the tensor t of type number 999, which is not supported"),
        ([("t", [256], IQ2_XXS, 0)], "has the tensor t of type IQ2_XXS, which is not supported"),
        ([("t", [1, 1, 1, 1, 1], F32, 0)], "has a tensor of 5 dimensions, more than 4"),
        ([("t", [0], F32, 0)], "has the tensor t with the shape (0,)"),
        ([("t", [33], Q4_0, 0)], "rows of 33, not a multiple of the Q4_0 block of 32"),
        ([("t", [32], F32, 7)], "has the tensor t at the misaligned offset 7"),
        ([("t", [32], F32, 32)], "at offset 32, but the tensors before it fill 0 bytes"),
        ([("t", [64], F32, 0), ("u", [32], F32, 128)], "at offset 128, but the tensors before it fill 256"),
        ([("t", [8], F32, 0), ("u", [32], F32, 128)], "at offset 128, but the tensors before it fill 32"),
        ([("t", [2**40], F32, 0)], "it is truncated or the shape is wrong"),
        ([("t", [2**32, 2**32], F32, 0)], "it is truncated or the shape is wrong"),
        ([("t", [2**63, 2, 2**63, 4], F32, 0)], "it is truncated or the shape is wrong"),
        ([("t", [32], F32, 2**63)], "at offset 9223372036854775808, but the tensors before it fill 0"),
        ([(b"\xff", [32], F32, 0)], "a name is not valid UTF-8"),
        ([("a\nb", [32], F32, 0)], "has the name 'a\\nb', which is not that of a tensor or key"),
        ([("t" * 66000, [32], F32, 0)], "has a name of 66000 bytes"),
    ],
)
def test_tensors(raw_gguf: Callable[..., Path], tensors: list[Any], sentence: str) -> None:
    assert sentence in refused(raw_gguf([ARCH], tensors, bytes(256)))


@pytest.mark.parametrize("alignment", [0, 3, 2**31, -1, "32", 32.0])
def test_alignment(raw_gguf: Callable[..., Path], alignment: Any) -> None:
    if alignment == -1:
        alignment = struct.pack("<Ii", 5, -1)
    assert "which is not a power of two" in refused(raw_gguf([ARCH, ("general.alignment", alignment)]))


def test_every_truncation_is_found(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf(keys={"tokenizer.ggml.tokens": [f"token{i}" for i in range(40)]})
    whole = path.read_bytes()
    for size in [*range(0, 2500, 29), *range(2500, len(whole) - 128, 9001), len(whole) - 128]:
        path.write_bytes(whole[:size])
        text = refused(path)
        assert any(word in text for word in ("too short", "ends within its header", "truncated")), (
            size,
            text,
        )


def test_architecture(write_gguf: Callable[..., Path]) -> None:
    text = refused(write_gguf("mamba"))
    assert "the architecture 'mamba' is not supported; supported are llama, mistral, qwen2" in text


def test_vocabulary_file(raw_gguf: Callable[..., Path]) -> None:
    numbers = [("llama.embedding_length", 32), ("llama.block_count", 1)]
    assert "token_embd.weight is missing: the file holds a vocabulary" in refused(raw_gguf([ARCH, *numbers]))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"block_count": 0}, "llama.block_count should be a whole number of at least 1, not 0"),
        ({"block_count": 4000000000}, "llama.block_count should be a whole number"),
        ({"block_count": 1000}, "block_count is 1000, but the file has only 20 tensors"),
        ({"block_count": 3}, "the tensor blk.2.attn_output.weight is missing"),
        (
            {"block_count": 1},
            "blk.1.attn_norm.weight exists, but the metadata says that there are only 1 layers",
        ),
        ({"block_count": "two"}, "llama.block_count should be a whole number of at least 1, not 'two'"),
        ({"block_count": None}, "llama.block_count is missing from the metadata"),
        ({"context_length": True}, "llama.context_length should be a whole number"),
        ({"attention.head_count": 0}, "llama.attention.head_count should be a whole number"),
        ({"attention.head_count": 5}, "is 5, which does not divide embedding_length 32"),
        ({"attention.head_count": [4, 2]}, "attention.head_count differs from layer to layer"),
        ({"attention.head_count_kv": 3}, "4 attention heads cannot share 3 key-value heads evenly"),
        ({"attention.head_count": 8}, "has the shape (16, 32), which disagrees with the metadata"),
        ({"attention.value_length": 16}, "differs from attention.key_length"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon should be a"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon should be a positive number"),
        ({"rope.freq_base": float("inf")}, "llama.rope.freq_base should be a number, not inf"),
        ({"rope.dimension_count": 7}, "rope.dimension_count is 7, which does not fit heads of 8"),
        ({"rope.dimension_count": 4}, "rope.dimension_count is 4, but this architecture rotates all 8"),
        ({"rope.scaling.type": "spiral"}, "llama.rope.scaling.type is 'spiral', which is not supported"),
        (
            {"embedding_length": 64},
            "has the shape (40, 32), which disagrees with the metadata: it should be (40, 64)",
        ),
        ({"feed_forward_length": 32}, "disagrees with the metadata"),
        ({"expert_count": 8}, "shows a mixture of experts"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "has 40 rows, which disagrees with the 2 tokens"),
        (
            {"split.count": 2},
            "this is one of 2 parts of a model, but its name does not end in -00001-of-00002",
        ),
    ],
)
def test_numbers_that_cannot_be(write_gguf: Callable[..., Path], keys: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(write_gguf(keys=keys))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"blk.1.ffn_up.weight": None},
            "the tensor blk.1.ffn_up.weight is missing, which the architecture llama",
        ),
        ({"output_norm.weight": None}, "the tensor output_norm.weight is missing"),
        ({"blk.0.ffn_norm.weight": np.zeros(31, np.float32)}, "has the shape (31,), which disagrees"),
        ({"output.weight": np.zeros((39, 32), np.float32)}, "it should be (40, 32)"),
        ({"blk.0.attn_q.bias": np.zeros(33, np.float32)}, "blk.0.attn_q.bias has the shape (33,)"),
        ({"blk.0.ffn_gate_inp.weight": np.zeros(4, np.float32)}, "is not part of the architecture llama"),
    ],
)
def test_tensors_that_contradict_the_metadata(
    write_gguf: Callable[..., Path], tensors: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(write_gguf(tensors=tensors))


def test_window_pattern_of_the_wrong_length(write_gguf: Callable[..., Path]) -> None:
    keys = {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, False, True]}
    assert "has 3 entries for 2 layers" in refused(write_gguf("gemma3", keys))

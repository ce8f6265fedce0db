"""Damaged and unsuitable Hugging Face folders: one sentence each, naming the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.hf import open_hf
from tests.formats.tiny import safetensors_bytes


def refused(folder: Path) -> str:
    with pytest.raises(EdgeError) as caught:
        open_hf(folder)
    text = str(caught.value)
    assert text.startswith(str(folder))
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no such model file or folder"):
        open_checkpoint(tmp_path / "none")


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert "config.json: no such file; give a .gguf file or a folder with config.json" in refused(tmp_path)


def test_folder_without_safetensors(write_hf: Callable[..., Path]) -> None:
    folder = write_hf()
    (folder / "model.safetensors").unlink()
    assert "the folder holds no model.safetensors" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "has only PyTorch weights, convert them" in refused(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[1]", "should hold a JSON dictionary, not a list"),
        (b"{}", "model_type is missing"),
        (b'{"model_type": 3}', "model_type should be a text, not 3"),
        (b'{"model_type": "mamba"}', "the model type 'mamba' is not supported; supported are llama, mistral"),
        (b'{"model_type": "gemma3", "text_config": []}', "text_config should be a dictionary, not a list"),
    ],
)
def test_config_json(write_hf: Callable[..., Path], content: bytes, sentence: str) -> None:
    folder = write_hf()
    (folder / "config.json").write_bytes(content)
    text = refused(folder)
    assert sentence in text
    assert "config.json" in text


@pytest.mark.parametrize(
    ("architecture", "config", "sentence"),
    [
        ("llama", {"hidden_size": 0}, "hidden_size should be a whole number of at least 1, not 0"),
        ("llama", {"hidden_size": 32.0}, "hidden_size should be a whole number of at least 1, not 32.0"),
        ("llama", {"hidden_size": None}, "hidden_size is missing from the metadata"),
        ("llama", {"hidden_size": 64}, "which disagrees with the metadata: it should be (40, 64)"),
        ("llama", {"vocab_size": 41}, "it should be (41, 32)"),
        ("llama", {"num_attention_heads": 3, "head_dim": None}, "is 3, which does not divide hidden_size 32"),
        ("llama", {"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ("llama", {"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight is not part of"),
        ("llama", {"num_hidden_layers": 3}, "the tensor blk.2.attn_output.weight is missing"),
        (
            "llama",
            {"num_hidden_layers": 10**6},
            "config.json says 1000000 layers, but there are only 20 tensors",
        ),
        ("llama", {"num_hidden_layers": 10**30}, "not an enormous number"),
        ("llama", {"head_dim": 7}, "leaves 7 of 7 dimensions to rotate"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps should be a number, not 'small'"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps should be a"),
        ("llama", {"hidden_act": "swiglu"}, "hidden_act is 'swiglu'; supported are silu"),
        ("llama", {"hidden_act": "fatrelu"}, "hidden_act_param is missing"),
        ("llama", {"hidden_act": "fatrelu", "hidden_act_param": -1}, "hidden_act_param should be a positive"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings should be true or false, not 'yes'"),
        ("llama", {"rope_theta": 0}, "rope_theta should be a positive number"),
        ("llama", {"rope_scaling": 4}, "rope_scaling should be a dictionary, not 4"),
        ("llama", {"rope_scaling": {"type": "spiral"}}, "names the rule 'spiral'; known are default"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor should be a positive number"),
        (
            "llama",
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "a high_freq_factor above its low_freq_factor",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1]}},
            "has 1 numbers in short_factor instead of 4",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 0]}},
            "other than positive numbers",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 1]}},
            "lacks the list long_factor",
        ),
        ("llama", {"partial_rotary_factor": 0.1}, "leaves 0 of 8 dimensions to rotate"),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1.0e4},
                    "sliding_attention": {"rope_theta": 1},
                }
            },
            "gives the layers different bases",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
            "scales the positions of sliding-window layers",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "an embedding model"),
        ("gemma3", {"layer_types": ["full_attention"]}, "should be a list of 2 entries"),
        ("gemma3", {"layer_types": ["full_attention", "linear"]}, "names a kind of layer other than"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern should be a whole number"),
    ],
)
def test_numbers_that_cannot_be(
    write_hf: Callable[..., Path], architecture: str, config: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(write_hf(architecture, config))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"model.norm.weight": None}, "the tensor output_norm.weight is missing"),
        ({"model.norm.weight": np.zeros(31, np.float32)}, "has the shape (31,), which disagrees"),
        ({"model.norm.weight": np.zeros(32, np.int64)}, "has the type I64, which is not supported"),
        (
            {"model.layers.0.mlp.router.weight": np.zeros(3, np.float32)},
            "is not part of the architecture llama",
        ),
        ({"model.layers.00.mlp.up_proj.weight": np.zeros((64, 32), np.float32)}, "is not part of the"),
        (
            {"some\nthing": np.zeros(3, np.float32)},
            "has the name 'some\\nthing', which is not that of a tensor",
        ),
        ({"something": np.zeros(3, np.float32)}, "the tensor something is not part of the architecture"),
    ],
)
def test_tensors(write_hf: Callable[..., Path], tensors: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(write_hf(tensors=tensors))


def test_buffers_of_old_versions_are_skipped(write_hf: Callable[..., Path]) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    assert len(open_hf(write_hf(tensors=buffer)).tensors) == 20


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "too short to be a safetensors file"),
        (b"PK\x03\x04abcdefgh", "claims a header of"),
        (safetensors_bytes(b"{}", b"", length=2**63), f"claims a header of {2**63} bytes but has 16"),
        (safetensors_bytes(b"{}", b"", length=9), "claims a header of 9 bytes"),
        (safetensors_bytes(b"not json", b""), "the safetensors header is damaged"),
        (safetensors_bytes(b"\xff\xfe", b""), "the safetensors header is damaged"),
        (safetensors_bytes(b"[" * 5000, b""), "the safetensors header is damaged"),
        (safetensors_bytes(json.dumps({"x": F32}).encode(), b"1234567"), "the safetensors header is damaged"),
        (
            safetensors_bytes(json.dumps({"x": F32}).encode(), b"123456789"),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(json.dumps({"x": F32 | {"shape": [3]}}).encode(), bytes(8)),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(json.dumps({"x": F32 | {"shape": [2**62, 2**62]}}).encode(), bytes(8)),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(json.dumps({"x": F32 | {"data_offsets": [8, 0]}}).encode(), bytes(8)),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(json.dumps({"x": F32, "y": F32}).encode(), bytes(8)),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(f'{{"x": {json.dumps(F32)}, "x": {json.dumps(F32)}}}'.encode(), bytes(8)),
            "a name occurs twice",
        ),
        (
            safetensors_bytes(json.dumps({"x": F32 | {"dtype": "F8_E4M3"}}).encode(), bytes(2)),
            "the safetensors header is damaged",
        ),
        (
            safetensors_bytes(
                json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode(),
                bytes(2),
            ),
            "the tensor x has the type F8_E4M3, which is not supported",
        ),
    ],
)
def test_safetensors_files(write_hf: Callable[..., Path], content: bytes, sentence: str) -> None:
    folder = write_hf()
    (folder / "model.safetensors").write_bytes(content)
    text = refused(folder)
    assert sentence in text
    assert "model.safetensors" in text

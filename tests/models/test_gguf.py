"""The goldens rewritten as GGUF files give the logits that transformers computed from the originals.

The rewriting follows llama.cpp's converter: q and k rows permuted for interleaved RoPE, Llama 3 divisors in
rope_freqs.weight, Gemma norm weights plus one. BitNet factors are in ".scale" tensors, as in some files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program

GOLDENS = Path(__file__).parent / "goldens"
BASES: dict[str, str] = json.loads((GOLDENS / "bases.json").read_text())


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """(heads, 2, half) rows become (heads, half, 2): what was i and i + half is now 2 i and 2 i + 1."""
    parts = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def llama3_divisors(config: dict[str, Any]) -> np.ndarray:
    """By the loop of llama.cpp's converter (conversion/llama.py, generate_extra_tensors)."""
    scaling, divisors = config["rope_scaling"], []
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, config["head_dim"], 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / config["head_dim"])
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(scaling["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def write_gguf(name: str, path: Path, folder: Path) -> None:
    """The golden `name` as the GGUF file `path`; `folder` holds the golden's Hugging Face files."""
    source = open_checkpoint(folder)
    config, c = source.metadata["config"], source.config
    rope = config.get("rope_parameters", config)
    writer = gguf.GGUFWriter(path, c.architecture)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.ffn_size)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.rope.dims)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if c.sliding_window and c.sliding_layers:
        writer.add_sliding_window(c.sliding_window)
        writer.add_sliding_window_pattern(c.sliding_layers)
    if c.attention_softcap and c.logits_softcap:
        writer.add_attn_logit_softcapping(c.attention_softcap)
        writer.add_final_logit_softcapping(c.logits_softcap)
    for tensor in source.tensors.values():
        values = tensor.dequantize()
        stem = tensor.name.split(".")[-2]
        if c.architecture == "llama" and stem in ("attn_q", "attn_k"):
            values = permuted(values, c.n_heads if stem == "attn_q" else c.n_kv_heads)
        if c.norm_weight_offset and stem.endswith("norm"):
            values = values + 1
        if c.attention_scale and stem == {"gemma2": "attn_q", "gemma3": "attn_q_norm"}[c.architecture]:
            values = values * c.attention_scale * c.head_dim**0.5  # GGUF has no key for another scale
        if c.architecture == "bitnet" and values.ndim == 2 and tensor.name.startswith("blk"):
            scale = np.abs(values).max()
            values = values / scale
            writer.add_tensor(tensor.name.replace(".weight", ".scale"), np.array([scale], np.float32))
        writer.add_tensor(tensor.name, values.astype(np.float32))
    if name == "llama-rope-llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    if name.startswith("phi3-longrope"):
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        stretch = c.context_length / config["original_max_position_embeddings"]
        attention = np.sqrt(1 + np.log(stretch) / np.log(config["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(float(attention))
        for length in ("long", "short"):
            divisors = np.array(config["rope_scaling"][f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama-rope-llama3",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3-longrope-short",
        "phi3-longrope-long",
        "bitnet-silu",
    ],
)
def test_gguf_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    golden = np.load(GOLDENS / name / "logits.npz")
    (tmp_path / "config.json").write_bytes((GOLDENS / name / "config.json").read_bytes())
    weights = GOLDENS / BASES.get(name, name) / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    write_gguf(name, tmp_path / "model.gguf", tmp_path)

    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.config.input_rounding = None  # transformers rounded nothing for these
    tokens = golden["tokens"]
    program = build_program(checkpoint, context=len(tokens))
    logits = ReferenceExecutor(program, checkpoint).new_session(len(tokens)).forward(tokens, all_logits=True)
    np.testing.assert_allclose(logits[golden["positions"]], golden["logits"], rtol=0, atol=2e-4)

"""Hugging Face folders written by the safetensors library: names, tensors and configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.hf import open_hf
from tests.formats.tiny import hf_name, tensor_shapes, write_safetensors

WriteHf = Callable[..., Path]


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "bitnet"]
)
def test_tensors_take_gguf_names(write_hf: WriteHf, architecture: str) -> None:
    from safetensors.numpy import load_file

    folder = write_hf(architecture)
    checkpoint = open_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    assert checkpoint.format == "hf"
    assert checkpoint.config.architecture == architecture
    assert set(checkpoint.tensors) == set(tensor_shapes(architecture))
    for name, shape in tensor_shapes(architecture).items():
        tensor = checkpoint.tensors[name]
        assert (tensor.name, tensor.type, tensor.shape) == (name, "F32", shape)
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.dequantize(), stored[hf_name(architecture, name)])


def test_half_precision_types(write_hf: WriteHf) -> None:
    bits = np.random.default_rng(2).integers(0, 2**16, (40, 32)).astype(np.uint16)
    halves = np.random.default_rng(2).normal(size=32).astype(np.float16)
    tensors = {"model.embed_tokens.weight": ("BF16", bits), "model.norm.weight": halves}
    checkpoint = open_hf(write_hf(tensors=tensors))
    embedding, norm = checkpoint.tensors["token_embd.weight"], checkpoint.tensors["output_norm.weight"]
    assert (embedding.type, norm.type) == ("BF16", "F16")
    np.testing.assert_array_equal(embedding.data.view(np.uint16), bits)
    np.testing.assert_array_equal(norm.dequantize(), halves.astype(np.float32))


def test_shards(write_hf: WriteHf) -> None:
    from safetensors.numpy import load_file

    whole = open_hf(write_hf())
    folder = write_hf(name="shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number in range(2):
        part = dict(list(tensors.items())[number::2])
        name = f"model-{number + 1:05d}-of-00002.safetensors"
        write_safetensors(folder / name, part)
        where |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    sharded = open_hf(folder)
    assert sharded.config == whole.config
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(sharded.tensors[name].data, tensor.data)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EdgeError, match=r"00002-of-00002\.safetensors: this shard of the model is missing"):
        open_hf(folder)
    index.write_text(json.dumps({"weight_map": where | {"x": "../secret.safetensors"}}))
    with pytest.raises(EdgeError, match="is not a plain file name"):
        open_hf(folder)
    index.write_text(json.dumps({"weight_map": {"y": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(EdgeError, match="the tensor 'y' is missing, which the index says is here"):
        open_hf(folder)
    index.write_text("{}")
    with pytest.raises(EdgeError, match="lacks the weight_map"):
        open_hf(folder)


def test_metadata(write_hf: WriteHf) -> None:
    folder = write_hf()
    metadata = open_hf(folder).metadata
    assert metadata["config"]["model_type"] == "llama"
    assert (metadata["generation_config"], metadata["tokenizer"]) == ({}, None)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "tokenizer.json").write_text("{}")
    metadata = open_hf(folder).metadata
    assert metadata["generation_config"] == {"eos_token_id": [1, 2]}
    assert metadata["tokenizer"] == str(folder / "tokenizer.json")


def test_tied_embeddings_drop_the_output_matrix(write_hf: WriteHf) -> None:
    tensors = {"lm_head.weight": np.zeros((40, 32), np.float32)}
    assert "output.weight" not in open_hf(write_hf(tensors=tensors)).tensors
    assert (
        "output.weight" in open_hf(write_hf(config={"tie_word_embeddings": False}, tensors=tensors)).tensors
    )
    # not in the file: a Llama class ties nothing by default
    with pytest.raises(EdgeError, match=r"lm_head\.weight is missing, and config\.json does not tie it"):
        open_hf(write_hf(config={"tie_word_embeddings": None}))
    # but a Gemma class does
    assert "output.weight" not in open_hf(write_hf("gemma2", {"tie_word_embeddings": None})).tensors


def test_qwen2_biases(write_hf: WriteHf) -> None:
    bias = np.arange(32, dtype=np.float32)
    checkpoint = open_hf(write_hf("qwen2", tensors={"model.layers.1.self_attn.q_proj.bias": bias}))
    np.testing.assert_array_equal(checkpoint.tensors["blk.1.attn_q.bias"].dequantize(), bias)


def test_gemma_numbers(write_hf: WriteHf) -> None:
    c = open_hf(write_hf("gemma2", {"query_pre_attn_scalar": 144, "sliding_window": 16})).config
    assert c.embedding_scale == pytest.approx(math.sqrt(32))
    assert c.norm_weight_offset == 1.0
    assert c.attention_scale == pytest.approx(1 / 12)
    assert (c.attention_softcap, c.logits_softcap) == (50.0, 30.0)  # defaults of the class
    assert (c.sliding_window, c.sliding_layers) == (16, (True, False))
    assert c.activation == "gelu_tanh"
    off = open_hf(write_hf("gemma2")).path / "config.json"
    off.write_text(json.dumps(json.loads(off.read_text()) | {"final_logit_softcapping": None}))
    assert open_hf(off.parent).config.logits_softcap is None


@pytest.mark.parametrize(
    ("config", "base", "local", "scaling"),
    [
        ({"rope_theta": None}, 1e6, 1e4, {}),
        ({"rope_theta": 5e5, "rope_local_base_freq": 2e4}, 5e5, 2e4, {}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            1e6,
            1e4,
            {"rope_type": "linear", "factor": 8.0},
        ),
        (
            {
                "rope_theta": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                },
            },
            3e6,
            3e4,
            {"rope_type": "linear", "factor": 8.0},
        ),
    ],
)
def test_gemma3_rope(
    write_hf: WriteHf, config: dict[str, Any], base: float, local: float, scaling: dict[str, Any]
) -> None:
    rope = open_hf(write_hf("gemma3", config)).config.rope
    assert (rope.base, rope.local_base, rope.scaling, rope.style) == (base, local, scaling, "half")


def test_gemma3_sliding_layers(write_hf: WriteHf) -> None:
    def flags(**config: Any) -> tuple[bool, ...] | None:
        return open_hf(write_hf("gemma3", {"sliding_window": 16, **config})).config.sliding_layers

    assert flags() == (True, True)
    assert flags(sliding_window_pattern=2) == (True, False)
    assert flags(layer_types=["full_attention", "sliding_attention"]) == (False, True)


def test_gemma3_beside_a_vision_tower(write_hf: WriteHf) -> None:
    """The hub's files: a nested configuration that leaves defaults out, and prefixed names."""
    plain = write_hf("gemma3")
    text = json.loads((plain / "config.json").read_text())
    arrays = {
        "model.language_model." + hf_name("gemma3", name).removeprefix("model."): np.zeros(shape, np.float32)
        for name, shape in tensor_shapes("gemma3").items()
    }
    arrays |= {"model.vision_tower.x.weight": np.zeros(3, np.float32)}
    folder = write_hf("gemma3", name="vision")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    write_safetensors(folder / "model.safetensors", arrays)
    checkpoint = open_hf(folder)
    assert checkpoint.config == open_hf(plain).config
    assert set(checkpoint.tensors) == set(tensor_shapes("gemma3"))


USED = {"sliding_window": 16, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("architecture", "config", "window", "layers"),
    [
        ("llama", {"sliding_window": 16}, None, None),
        ("mistral", {"sliding_window": 16}, 16, None),
        ("phi3", {"sliding_window": 16}, 16, None),
        ("phi3", {}, None, None),
        ("qwen2", {"sliding_window": 16, "max_window_layers": 1}, None, None),
        (
            "qwen2",
            {"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": True},
            16,
            (False, True),
        ),
        ("qwen3", {"sliding_window": 16, "max_window_layers": 28, "use_sliding_window": True}, None, None),
        (
            "qwen3",
            USED | {"layer_types": ["sliding_attention", "full_attention"]},
            16,
            (True, False),
        ),
    ],
)
def test_sliding_windows(
    write_hf: WriteHf, architecture: str, config: dict[str, Any], window: int | None, layers: Any
) -> None:
    c = open_hf(write_hf(architecture, config)).config
    assert (c.sliding_window, c.sliding_layers) == (window, layers)


def test_mistral_without_a_window(write_hf: WriteHf) -> None:
    assert open_hf(write_hf("mistral")).config.sliding_window == 4096  # default of the class
    folder = write_hf("mistral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    assert open_hf(folder).config.sliding_window is None


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    ],
)
def test_llama3_rope_of_transformers_4_and_5(write_hf: WriteHf, config: dict[str, Any]) -> None:
    rope = open_hf(write_hf(config=config)).config.rope
    assert (rope.base, rope.dims, rope.local_base) == (5e5, 8, None)
    assert rope.scaling == LLAMA3


def test_phi3_longrope(write_hf: WriteHf) -> None:
    config = {
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.0, 1.5], "long_factor": [2, 3, 4]},
        "partial_rotary_factor": 0.75,
    }
    rope = open_hf(write_hf("phi3", config)).config.rope
    assert rope.dims == 6
    assert rope.scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.0, 1.5],
        "long_factor": [2.0, 3.0, 4.0],
        "original_max_position_embeddings": 32,
    }


def test_bitnet_defaults(write_hf: WriteHf) -> None:
    c = open_hf(write_hf("bitnet", {"rope_theta": None})).config
    assert (c.activation, c.rope.base) == ("relu2", 500000.0)


def test_bitnet_as_it_was_first_published(write_hf: WriteHf) -> None:
    """1bitLLM's folders: Llama's model type, norms under other names, and weights in full precision."""
    layers = [f"model.layers.{i}." for i in range(2)]
    norms = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}
    plain = open_hf(write_hf("bitnet", name="plain"))
    moved: dict[str, Any] = {}
    for layer in layers:
        for new, old in norms.items():
            moved[f"{layer}{new}.weight"] = None
            tensor = plain.tensors[f"blk.{layer.split('.')[2]}.{new.split('.')[1]}.weight"]
            moved[f"{layer}{old}.weight"] = tensor.dequantize()
    config = {
        "model_type": "llama", "architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8,
        "hidden_act": "silu", "rope_theta": None,
    }  # fmt: skip
    found = open_hf(write_hf("bitnet", config, moved))
    c = found.config
    assert (c.architecture, c.activation, c.rope.base, c.input_rounding) == (
        "bitnet",
        "silu",
        10000.0,
        "int8",
    )
    assert set(found.tensors) >= set(plain.tensors)
    assert set(np.unique(found.tensors["blk.0.attn_q.weight"].dequantize())) == {-1.0, 0.0, 1.0}
    for name in ("blk.1.ffn_sub_norm.weight", "blk.0.attn_sub_norm.weight"):
        np.testing.assert_array_equal(found.tensors[name].dequantize(), plain.tensors[name].dequantize())
    with pytest.raises(EdgeError, match="input_bits is 4, not 8"):
        open_hf(write_hf("bitnet", config | {"input_bits": 4}, moved))


def opt_tensors(hidden: int, embedding: int, norms: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (40, embedding),
        "embed_positions.weight": (130, hidden),
    }
    if embedding != hidden:
        shapes |= {"project_in.weight": (hidden, embedding), "project_out.weight": (embedding, hidden)}
    if norms:
        shapes |= {"final_layer_norm.weight": (hidden,), "final_layer_norm.bias": (hidden,)}
    for layer in range(2):
        sizes = {f"self_attn.{x}_proj": (hidden, hidden) for x in ("q", "k", "v", "out")}
        sizes |= {"fc1": (64, hidden), "fc2": (hidden, 64)}
        sizes |= {"self_attn_layer_norm": (hidden,), "final_layer_norm": (hidden,)}
        for name, shape in sizes.items():
            shapes |= {f"layers.{layer}.{name}.weight": shape, f"layers.{layer}.{name}.bias": shape[:1]}
    return {f"model.decoder.{name}": rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


@pytest.mark.parametrize("embedding", [32, 16])
@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder."])
def test_opt(write_hf: WriteHf, embedding: int, prefix: str) -> None:
    before = embedding == 32
    tensors = opt_tensors(32, embedding, norms=before)
    folder = write_hf("llama", name="opt")
    config = {
        "model_type": "opt",
        "vocab_size": 40,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": embedding,
        "do_layer_norm_before": before,
        "activation_function": "relu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(
        folder / "model.safetensors", {k.replace("model.decoder.", prefix): v for k, v in tensors.items()}
    )
    checkpoint = open_hf(folder)
    c = checkpoint.config
    assert (c.architecture, c.activation, c.norm_eps, c.ffn_size) == ("opt", "relu", 1e-5, 64)
    assert c.extra["do_layer_norm_before"] is before
    assert (c.extra["word_embed_proj_dim"], c.extra["position_offset"]) == (embedding, 2)
    pairs = {
        "token_embd.weight": "embed_tokens.weight",
        "position_embd.weight": "embed_positions.weight",
        "blk.1.attn_output.bias": "layers.1.self_attn.out_proj.bias",
        "blk.1.attn_norm.weight": "layers.1.self_attn_layer_norm.weight",
        "blk.1.ffn_norm.bias": "layers.1.final_layer_norm.bias",
        "blk.0.ffn_up.weight": "layers.0.fc1.weight",
        "blk.0.ffn_down.weight": "layers.0.fc2.weight",
    }
    if before:
        pairs |= {"output_norm.bias": "final_layer_norm.bias"}
    else:
        pairs |= {"project_in.weight": "project_in.weight", "project_out.weight": "project_out.weight"}
    for name, original in pairs.items():
        np.testing.assert_array_equal(
            checkpoint.tensors[name].dequantize(), tensors[f"model.decoder.{original}"]
        )
    assert len(checkpoint.tensors) == len(tensors)

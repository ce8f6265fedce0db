"""ModelConfig of a GGUF file, with the defaults that llama.cpp gives each architecture.

Source: llama.cpp, src/llama-model.cpp (load_hparams, llama_model_rope_type) and src/models/*.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.config import SUPPORTED_ARCHITECTURES, ModelConfig, RopeConfig
from edgellm.formats.keys import Keys
from edgellm.formats.tensor import Tensor

# general.architecture -> file under models/ and activation. Mistral files call themselves "llama".
# The three BitNet names are 1bitLLM's, and the two of Microsoft's fork, whose FFN squares a ReLU.
_ARCHITECTURES = {
    "llama": ("llama", "silu"),
    "qwen2": ("qwen2", "silu"),
    "qwen3": ("qwen3", "silu"),
    "gemma2": ("gemma2", "gelu_tanh"),
    "gemma3": ("gemma3", "gelu_tanh"),
    "phi3": ("phi3", "silu"),
    "bitnet": ("bitnet", "silu"),
    "bitnet-25": ("bitnet", "relu2"),
    "bitnet-b1.58": ("bitnet", "relu2"),
}
# What the key hidden_activation may say. llama.cpp has it for other architectures only, and computes SiLU in
# a Llama whatever it says.
_OTHER_ACTIVATIONS = {"llama": ("silu", "relu", "relu2"), "bitnet": ("silu", "relu2")}
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def gguf_config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration, every number checked for itself; formats.shapes compares it with the tensors.

    Raises EdgeError for an unknown architecture and for missing or impossible numbers.
    """
    name = Keys(path, metadata).text("general.architecture")
    if name not in _ARCHITECTURES:
        raise EdgeError(
            f"{path}: the architecture {name[:60]!r} is not supported; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    architecture, activation = _ARCHITECTURES[name]
    keys = Keys(path, metadata, f"{name}.")
    if keys.integer("expert_count", 0, least=0) > 0:
        keys.fail(
            "expert_count", "shows a mixture of experts, which is not supported for this architecture yet"
        )
    if "token_embd.weight" not in tensors:
        raise EdgeError(
            f"{path}: the tensor token_embd.weight is missing: the file holds a vocabulary, an adapter or a "
            "projector, but not a whole language model."
        )
    hidden = keys.integer("embedding_length")
    layers = keys.integer("block_count")
    if layers > len(tensors):
        keys.fail("block_count", f"is {layers}, but the file has only {len(tensors)} tensors; it is damaged")
    heads = keys.integer("attention.head_count")
    if "attention.key_length" not in keys and hidden % heads:
        keys.fail("attention.head_count", f"is {heads}, which does not divide embedding_length {hidden}")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        keys.fail("attention.value_length", "differs from attention.key_length, which is not supported")
    config = ModelConfig(
        architecture=architecture,
        context_length=keys.integer("context_length"),
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=keys.integer("feed_forward_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, architecture, head_dim, tensors),
        activation=activation,
    )
    if architecture in ("gemma2", "gemma3"):
        _gemma(keys, config)
    if architecture in _OTHER_ACTIVATIONS:
        config.activation = keys.text("hidden_activation", activation)  # of newer files of llama.cpp
        if config.activation not in (known := _OTHER_ACTIVATIONS[architecture]):
            keys.fail("hidden_activation", f"is {config.activation[:40]!r}, not {' or '.join(known)}")
    if architecture == "bitnet":
        config.input_rounding = "int8"
    return config


def _gemma(keys: Keys, config: ModelConfig) -> None:
    """What llama.cpp sets for Gemma 2 and 3 beside the common numbers. Norm weights are already w + 1."""
    gemma2 = config.architecture == "gemma2"
    config.embedding_scale = math.sqrt(config.hidden_size)
    config.attention_softcap = (keys.optional_number("attn_logit_softcapping") or 50.0) if gemma2 else None
    config.logits_softcap = keys.optional_number("final_logit_softcapping") or (30.0 if gemma2 else None)
    if config.n_layers == _GEMMA_27B_LAYERS[config.architecture]:
        config.attention_scale = (config.hidden_size // config.n_heads) ** -0.5
    window = keys.integer("attention.sliding_window", 4096 if gemma2 else 0, least=0)
    if window:
        config.sliding_window = window
        config.sliding_layers = _sliding_layers(keys, config.n_layers, period=2 if gemma2 else 6)


def _sliding_layers(keys: Keys, layers: int, period: int) -> tuple[bool, ...]:
    """Per layer, whether the window applies: by default to all but the last of every `period` layers."""
    key = "attention.sliding_window_pattern"
    pattern = keys.get(key, period)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers:
            keys.fail(key, f"has {len(pattern)} entries for {layers} layers")
        return tuple(bool(x) for x in pattern.tolist())
    period = keys.integer(key, period, least=0)
    return tuple(period == 0 or i % period < period - 1 for i in range(layers))


def _rope(keys: Keys, architecture: str, head_dim: int, tensors: Mapping[str, Tensor]) -> RopeConfig:
    """Llama files keep q and k rows permuted for interleaved pairs, all the others are split in halves.

    Llama 3 divisors stay in the tensor rope_freqs.weight, Phi-3's in rope_factors_{long,short}.weight.
    """
    dims = keys.integer("rope.dimension_count", head_dim)
    if dims > head_dim or dims % 2:
        keys.fail("rope.dimension_count", f"is {dims}, which does not fit heads of {head_dim}")
    if architecture == "llama" and dims != head_dim:
        keys.fail(
            "rope.dimension_count", f"is {dims}, but this architecture rotates all {head_dim} of a head"
        )
    local = None
    base = keys.number("rope.freq_base", 10000.0)
    if architecture in ("gemma2", "gemma3"):
        local = keys.number("rope.freq_base_swa", base if architecture == "gemma2" else 10000.0)
    return RopeConfig(
        base=base,
        dims=dims,
        style="interleaved" if architecture == "llama" else "half",
        scaling=_scaling(keys, tensors),
        local_base=local if local != base else None,
    )


def _scaling(keys: Keys, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The rope.scaling.* keys as the dictionary that Hugging Face configurations have."""
    rule = keys.text("rope.scaling.type", "linear")
    factor = keys.optional_number("rope.scaling.factor") or keys.optional_number("rope.scale_linear") or 1.0
    scaling: dict[str, Any] = {}
    if "rope_factors_long.weight" in tensors:
        # llama.cpp multiplies by attn_factor alone, 1 if absent; Hugging Face would derive one
        scaling = {"rope_type": "longrope", "attention_factor": keys.number("rope.scaling.attn_factor", 1.0)}
    elif rule == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor}
        for key in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{key}" in keys:
                scaling[key] = keys.number(f"rope.scaling.yarn_{key}")
        if "rope.scaling.attn_factor" in keys:
            scaling["attention_factor"] = keys.number("rope.scaling.attn_factor") * (
                0.1 * math.log(max(factor, 1.0)) + 1.0
            )
    elif rule == "linear":
        scaling = {"rope_type": "linear", "factor": factor} if factor != 1.0 else {}
    elif rule != "none":
        keys.fail("rope.scaling.type", f"is {rule[:40]!r}, which is not supported without its factors")
    if scaling and "rope.scaling.original_context_length" in keys:
        scaling["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    elif scaling.get("rope_type") in ("longrope", "yarn"):
        scaling["original_max_position_embeddings"] = keys.integer("context_length")
    return scaling

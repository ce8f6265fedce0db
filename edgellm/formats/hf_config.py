"""ModelConfig of a Hugging Face folder: what config.json says, and what it leaves to the defaults.

Source of the defaults and of the rules: transformers, models/*/configuration_*.py and
modeling_rope_utils.py (versions 4 and 5: rope_theta and rope_scaling, or rope_parameters).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError
from edgellm.formats.config import SUPPORTED_ARCHITECTURES, ModelConfig, RopeConfig
from edgellm.formats.hf_rope import rope_config
from edgellm.formats.keys import Keys

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "fatrelu": "relu",  # of ProSparse (arXiv:2402.13516), with hidden_act_param
}
# What may be left out of a config.json because it equals the default of the model's own class.
_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "max_position_embeddings": 2048},
    "mistral": {**_COMMON, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_COMMON, "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {
        **_COMMON,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    "gemma2": {
        **_GEMMA,
        "max_position_embeddings": 8192,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3": {
        **_GEMMA,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "max_position_embeddings": 131072,
    },
    "phi3": {**_COMMON, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    "opt": {"activation_function": "relu", "tie_word_embeddings": True, "max_position_embeddings": 2048},
    "bitnet": {**_COMMON, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
}


def hf_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    """The configuration; `path` is that of config.json, for the errors.

    extra: "tie_word_embeddings" and "vocab_size" as config.json has them, "quantization" (the
    quantization_config dictionary of BitNet models), and for OPT "do_layer_norm_before",
    "word_embed_proj_dim", "position_offset". Raises EdgeError for an unknown model type or quantisation
    and for missing or impossible numbers.
    """
    model_type, config = _text_part(path, config)
    keys = Keys(path, {**_DEFAULTS[model_type], **config})
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if "head_dim" not in keys and hidden % heads:
        keys.fail("num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    head_dim = keys.integer("head_dim", hidden // heads)
    opt = model_type == "opt"
    activation = keys.text({"opt": "activation_function"}.get(model_type, "hidden_act"), "")
    if model_type in ("gemma2", "gemma3"):
        activation = keys.text("hidden_activation")
    if activation not in _ACTIVATIONS:
        keys.fail("hidden_act", f"is {activation[:40]!r}; supported are {', '.join(_ACTIVATIONS)}")
    context = keys.integer("max_position_embeddings")
    result = ModelConfig(
        architecture=model_type,
        context_length=context,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        n_layers=keys.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads if opt else keys.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn_size=keys.integer("ffn_dim" if opt else "intermediate_size"),
        norm_eps=1e-5 if opt else keys.number("rms_norm_eps"),
        rope=RopeConfig() if opt else rope_config(keys, model_type, head_dim, context),
        activation=_ACTIVATIONS[activation],
    )
    if activation == "fatrelu":
        result.activation_threshold = keys.number("hidden_act_param", positive=False)
    result.extra["tie_word_embeddings"] = keys.flag("tie_word_embeddings")
    _quantization(keys, result)
    _sliding_window(keys, result)
    if model_type in ("gemma2", "gemma3"):
        _gemma(keys, result)
    if opt:
        _opt(keys, result)
    return result


def _text_part(path: Path, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Architecture and configuration of the language model, which Gemma 3 nests beside a vision tower."""
    model_type = Keys(path, config).text("model_type")
    if model_type == "gemma3":
        nested = Keys(path, config).table("text_config")
        for key in ("tie_word_embeddings", "quantization_config"):
            if key in config:
                nested.setdefault(key, config[key])
        config = nested
    elif model_type == "gemma3_text":
        model_type = "gemma3"
    elif model_type == "llama" and "BitnetForCausalLM" in (config.get("architectures") or ()):
        model_type, config = "bitnet", _first_bitnet(path, config)
    if model_type not in SUPPORTED_ARCHITECTURES:
        raise EdgeError(
            f"{path}: the model type {model_type[:60]!r} is not supported; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    return model_type, config


def _first_bitnet(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of 1bitLLM's models, which name Llama's class and bring their own code: master
    weights that are rounded when they are used, by the same rule as transformers' BitNet."""
    keys = Keys(path, config)
    for key, bits in (("weight_bits", 1), ("input_bits", 8)):
        if keys.integer(key, bits) != bits:
            keys.fail(key, f"is {config[key]}, not {bits}, which is not supported")
    rounded = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    return {**_DEFAULTS["llama"], "rope_theta": 10000.0, **config, "quantization_config": rounded}


def _quantization(keys: Keys, result: ModelConfig) -> None:
    quantization = keys.table("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method")
    if method != "bitnet":
        keys.fail(
            "quantization_config", f"names the method {str(method)[:40]!r}; use a GGUF file of the model"
        )
    if quantization.get("use_rms_norm"):
        keys.fail("quantization_config", "asks for norms inside of the linears, which is not supported")
    if quantization.get("linear_class", "bitlinear") not in ("bitlinear", "autobitlinear"):
        keys.fail("quantization_config", "has a linear_class other than bitlinear and autobitlinear")
    if quantization.get("quantization_mode", "offline") not in ("online", "offline"):
        keys.fail("quantization_config", "has a quantization_mode other than online and offline")
    kept = quantization.get("modules_to_not_convert") or []
    if not isinstance(kept, list) or any("layers" in str(name) or "_proj" in str(name) for name in kept):
        keys.fail("quantization_config", "leaves some of the linears unquantised, which is not supported")
    result.extra["quantization"] = quantization
    result.input_rounding = "int8"


def _sliding_window(keys: Keys, result: ModelConfig) -> None:
    """Which layers see only the last `sliding_window` positions. Mistral and Phi-3: all of them."""
    kind, layers = result.architecture, result.n_layers
    if kind not in ("mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3") or "sliding_window" not in keys:
        return
    if kind in ("qwen2", "qwen3") and not keys.flag("use_sliding_window", False):
        return
    window = keys.integer("sliding_window")
    if kind in ("mistral", "phi3"):
        result.sliding_window = window
        return
    types = keys.get("layer_types", None)
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            keys.fail("layer_types", f"should be a list of {layers} entries, one per layer")
        if not all(kind in ("sliding_attention", "full_attention") for kind in types):
            keys.fail("layer_types", "names a kind of layer other than sliding_attention and full_attention")
        flags = tuple(kind == "sliding_attention" for kind in types)
    elif kind in ("qwen2", "qwen3"):
        first = keys.integer("max_window_layers", 28, least=0)
        flags = tuple(i >= first for i in range(layers))
    else:
        period = 2 if kind == "gemma2" else keys.integer("sliding_window_pattern", 6)
        flags = tuple((i + 1) % period != 0 for i in range(layers))
    if any(flags):
        result.sliding_window, result.sliding_layers = window, flags


def _gemma(keys: Keys, result: ModelConfig) -> None:
    if keys.flag("use_bidirectional_attention", False):
        keys.fail("use_bidirectional_attention", "is true: an embedding model, which generates no text")
    result.embedding_scale = math.sqrt(result.hidden_size)
    result.norm_weight_offset = 1.0
    result.attention_scale = keys.number("query_pre_attn_scalar") ** -0.5
    result.attention_softcap = keys.optional_number("attn_logit_softcapping")
    result.logits_softcap = keys.optional_number("final_logit_softcapping")


def _opt(keys: Keys, result: ModelConfig) -> None:
    if keys.flag("_remove_final_layer_norm", False):
        keys.fail("_remove_final_layer_norm", "is true, which is not supported")
    result.extra["do_layer_norm_before"] = keys.flag("do_layer_norm_before", True)
    result.extra["word_embed_proj_dim"] = keys.integer("word_embed_proj_dim", result.hidden_size)
    result.extra["position_offset"] = 2

"""Make the tiny checkpoints under tests/models/goldens and the logits that transformers computes from them.

    python -m venv /tmp/goldens && /tmp/goldens/bin/pip install -r tools/goldens/requirements.txt
    TORCHDYNAMO_DISABLE=1 /tmp/goldens/bin/python tools/goldens/generate.py tests/models/goldens

Every model is random, with no weight, norm or bias left at one or zero, and stored in 16 bits; transformers
runs it in float32 on the rounded weights. A case is a folder with a config.json (the bases as transformers
writes it today, the variants as files on the hub have it) and logits.npz: tokens (T,), positions (P,) and
logits (P, vocab) float32. A base also holds model.safetensors; a variant runs on the weights of its base.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.quantization_config import BitNetQuantConfig

TOKENS = 48  # three times the sliding window
WINDOW = 16
STORED_POSITIONS = [*range(0, TOKENS, 6), TOKENS - 1]
SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONG_FACTORS = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 1.4, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

BASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 16, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"model_type": "phi3", "sliding_window": WINDOW, "tie_word_embeddings": False},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
    "opt-post-norm": {
        "model_type": "opt",
        "ffn_dim": 96,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
        "num_hidden_layers": 1,
    },
    "bitnet": {"model_type": "bitnet", "rope_theta": 5e5, "tie_word_embeddings": True},
}

# name -> (base, changes to its configuration, tokens)
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama-rope-llama3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}, TOKENS),
    "llama-rope-linear": (
        "llama",
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
        TOKENS,
    ),
    "llama-rope-yarn": (
        "llama",
        {
            "rope_theta": 1e4,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
        },
        TOKENS,
    ),
    "llama-relu": ("llama", {"rope_theta": 1e4, "hidden_act": "relu"}, TOKENS),
    "mistral": (
        "llama",
        {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "rope_theta": 1e4,
            "sliding_window": WINDOW,
        },
        TOKENS,
    ),
    "qwen2-window": (
        "qwen2",
        {"rope_theta": 1e6, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        TOKENS,
    ),
    "gemma3-rope-linear": (
        "gemma3",
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        TOKENS,
    ),
    "phi3-longrope-short": (
        "phi3",
        {
            "rope_theta": 1e4,
            "sliding_window": None,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "longrope", **LONG_FACTORS},
        },
        24,
    ),
    "phi3-longrope-long": (
        "phi3",
        {
            "rope_theta": 1e4,
            "sliding_window": None,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "longrope", **LONG_FACTORS},
        },
        TOKENS,
    ),
    "phi3-partial": (
        "phi3",
        {
            "rope_theta": 1e4,
            "sliding_window": None,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "longrope", **{k: v[:4] for k, v in LONG_FACTORS.items()}},
        },
        TOKENS,
    ),
    "bitnet-silu": ("bitnet", {"rope_theta": 1e4, "hidden_act": "silu"}, TOKENS),
    "bitnet-int8": ("bitnet", {"rope_theta": 5e5}, TOKENS),  # activations rounded as in training
}

# RoPE settings of published models, whose frequencies go into rope.npz: name -> configuration
ROPES: dict[str, dict[str, Any]] = {
    "llama3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 5e5,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
    },
    "llama3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 5e5,
        "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    },
    "qwen2.5-7b-yarn": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "gemma3-4b-global": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def randomise(model: torch.nn.Module, model_type: str) -> None:
    """Give every parameter values that matter: peaked attention, logits some units apart."""
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if p.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") and "gemma" not in model_type else 0.0
            p.data = centre + 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            p.data = 0.4 * noise
        else:
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.2
            p.data = gain / p.shape[1] ** 0.5 * noise
            if model_type == "bitnet":
                p.data = torch.sign(noise) * (noise.abs() > 0.5) * gain / p.shape[1] ** 0.5


def base_config(changes: dict[str, Any]) -> Any:
    fields = {**SHAPE, **changes}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def old_style(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config.json as most files on the hub have it: rope_theta and rope_scaling at the top level."""
    config = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype", "layer_types")}
    config |= {"torch_dtype": "float16", "transformers_version": "4.44.0"}
    if changes.get("rope_local_base_freq"):
        config["layer_types"] = BASES["gemma3"]["layer_types"]
    return {**config, **changes}


def write_logits(folder: Path, model: torch.nn.Module, count: int) -> None:
    tokens = np.random.default_rng(7).integers(3, SHAPE["vocab_size"], count)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    positions = np.array([p for p in STORED_POSITIONS if p < count])
    np.savez(
        folder / "logits.npz", tokens=tokens.astype(np.int16), positions=positions, logits=logits[positions]
    )
    print(f"{folder.name:22} logits: deviation {logits.std():.2f}, largest {np.abs(logits).max():.2f}")


def load(folder: Path, weights: Path) -> torch.nn.Module:
    """The model of folder/config.json on the weights of another folder, in float32."""
    with tempfile.TemporaryDirectory() as both:
        shutil.copy(folder / "config.json", both)
        shutil.copy(weights / "model.safetensors", both)
        return AutoModelForCausalLM.from_pretrained(
            both, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def make_base(root: Path, name: str) -> None:
    torch.manual_seed(sum(map(ord, name)))
    config = base_config(BASES[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, config.model_type)
    folder = root / name
    model.to(torch.bfloat16 if name == "llama" else torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_logits(folder, load(folder, folder), TOKENS)


def make_variant(root: Path, name: str) -> None:
    base, changes, count = VARIANTS[name]
    folder = root / name
    folder.mkdir(parents=True)
    config = json.loads((root / base / "config.json").read_text())
    text = json.dumps(old_style(config, changes), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    model = load(folder, root / base)
    if name == "bitnet-int8":
        quantisation = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="offline")
        state = model.state_dict()
        model = replace_with_bitnet_linear(model, ["lm_head"], quantisation).to_empty(device="cpu")
        scales = {k: torch.ones(1) for k in model.state_dict() if k.endswith("weight_scale")}
        rope = load(folder, root / base).model.rotary_emb
        model.model.rotary_emb = rope
        model.load_state_dict({**state, **scales})
    write_logits(folder, model.eval(), count)


def write_ropes(root: Path) -> None:
    """rope.json: the settings; rope.npz: per name the frequencies (dims / 2,) with the magnitude appended."""
    arrays = {}
    for name, fields in ROPES.items():
        config = AutoConfig.for_model(**fields)
        rule = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
        inv_freq, magnitude = rule(config, device="cpu")
        arrays[name] = np.append(inv_freq.numpy(), np.float32(magnitude))
    np.savez(root / "rope.npz", allow_pickle=False, **arrays)
    (root / "rope.json").write_text(json.dumps(ROPES, indent=2) + "\n")


def main() -> None:
    root = Path(sys.argv[1])
    for name in [*BASES, *VARIANTS]:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in BASES:
        make_base(root, name)
    for name in VARIANTS:
        make_variant(root, name)
    write_ropes(root)
    bases = {name: variant[0] for name, variant in VARIANTS.items()}
    (root / "bases.json").write_text(json.dumps(bases, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""A tiny BitNet whose rows fill ternary blocks, as a Hugging Face folder; with a tokenizer if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats.tiny import hf_name, write_safetensors

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD = 256, 512, 2, 4, 2, 64
MATRICES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV_HEADS * HEAD, HIDDEN),
    "attn_v": (KV_HEADS * HEAD, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}
NORMS = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "attn_sub_norm": HIDDEN, "ffn_sub_norm": FFN}
LINEARS = [f"blk.{layer}.{name}" for layer in range(LAYERS) for name in MATRICES]
VOCABULARIES = Path(__file__).parents[1] / "text" / "data" / "vocabularies.json"
QUANTIZATION: dict[str, Any] = {
    "packed": {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"},
    "master": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    "undeclared": None,  # master weights, and nothing that says so
}


def bfloat16(values: np.ndarray) -> tuple[str, np.ndarray]:
    """Cut off to the upper half of a float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
    return "BF16", bits.astype(np.uint16)


def trits(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape)


def packed(values: np.ndarray) -> np.ndarray:
    """Trits as transformers packs them: bits 2i of packed row r are row i * rows / 4 + r."""
    quarters = (values + 1).reshape(4, -1, values.shape[1]).astype(np.uint8)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def write_bitnet(
    folder: Path, form: str = "packed", *, vocab: int = 40, scale: float = 0.07, config: Any = None
) -> Path:
    """form: a key of QUANTIZATION. scale: what each packed matrix is multiplied by, at least nearly; the file
    holds 1 / scale in bfloat16. Matrix i of LINEARS has trits(i, shape), or random master weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "model_type": "bitnet",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "quantization_config": QUANTIZATION[form],
    } | (config or {})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {"token_embd": bfloat16(rng.normal(size=(vocab, HIDDEN)) * 0.09)}
    tensors["output_norm"] = bfloat16(1 + 0.1 * rng.normal(size=HIDDEN))
    for layer in range(LAYERS):
        for name, width in NORMS.items():
            tensors[f"blk.{layer}.{name}"] = bfloat16(1 + 0.1 * rng.normal(size=width))
    named = {hf_name("bitnet", f"{name}.weight"): tensor for name, tensor in tensors.items()}
    for seed, name in enumerate(LINEARS):
        shape = MATRICES[name.split(".")[-1]]
        original = hf_name("bitnet", f"{name}.weight")
        if form == "packed":
            named[original] = packed(trits(seed, shape))
            named[f"{original}_scale"] = bfloat16(np.array([1 / scale]))
        else:
            named[original] = bfloat16(rng.normal(size=shape) / np.sqrt(shape[1]))
    write_safetensors(folder / "model.safetensors", named)
    return folder


def add_tokenizer(folder: Path, name: str) -> int:
    """Puts the golden vocabulary `name` into the folder as tokenizer.json; returns how many tokens it has."""
    from tokenizers import decoders

    from edgellm.text.from_gguf import tokenizer_from_gguf

    folder.mkdir(parents=True, exist_ok=True)
    metadata = json.loads(VOCABULARIES.read_text(encoding="utf-8"))[name]["metadata"]
    tokenizer = tokenizer_from_gguf(metadata, folder)
    tokenizer._backend.decoder = (
        decoders.ByteLevel()
        if metadata["tokenizer.ggml.model"] == "gpt2"
        else decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    )
    tokenizer._backend.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": tokenizer.bos_token,
        "eos_token": {"content": tokenizer.eos_token},
        "add_bos_token": True,
        "chat_template": "{{ messages[0]['content'] }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(metadata["tokenizer.ggml.tokens"])

"""Tiny models written by the libraries themselves, and raw GGUF bytes for what no library would write."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, FFN, CONTEXT = 40, 32, 2, 4, 2, 8, 64, 128


def tensor_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """GGUF names and NumPy shapes of a tiny model."""
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,),
            "attn_q": (q, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, q),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }
        if architecture == "phi3":
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del block[name]
            block |= {"attn_qkv": (q + 2 * kv, HIDDEN), "ffn_up": (2 * FFN, HIDDEN)}
        if architecture in ("gemma2", "gemma3"):
            block |= {"post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)}
        if architecture in ("qwen3", "gemma3"):
            block |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
        if architecture.startswith("bitnet"):
            block |= {"attn_sub_norm": (q,), "ffn_sub_norm": (FFN,)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def gguf_keys(architecture: str) -> dict[str, Any]:
    return {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": CONTEXT,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": FFN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
    }


def add_key(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """Type and payload of a value; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<I", STRING) + gguf_string(value)


# name, dimensions in ggml order, type number, offset
TensorInfo = tuple[Any, Sequence[int], int, int]


def gguf_bytes(
    keys: Sequence[tuple[Any, Any]] = (),
    tensors: Sequence[TensorInfo] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A GGUF file by the letter of its specification, right or wrong."""
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    for key, value in keys:
        out += gguf_string(key) + gguf_value(value)
    for name, dims, kind, offset in tensors:
        out += gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % 32) + data


# Hugging Face names of the tiny models, without ".weight"
HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
HF_NAMES_OF = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
HF_NAMES_OF["gemma3"] = HF_NAMES_OF["gemma2"]


def hf_name(architecture: str, gguf_name: str) -> str:
    names = HF_NAMES | HF_NAMES_OF.get(architecture, {})
    stem, _, part = gguf_name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, rest = stem.split(".")
        return f"model.layers.{layer}.{names[rest]}.{part}"
    return f"{names[stem]}.{part}"


def hf_config(architecture: str) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "intermediate_size": FFN,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray | tuple[str, np.ndarray]]) -> None:
    """Through the library; ("BF16", uint16 array) has its header say a type that NumPy lacks."""
    from safetensors.numpy import save

    arrays = {name: x[1] if isinstance(x, tuple) else x for name, x in tensors.items()}
    content = save(arrays)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, x in tensors.items():
        if isinstance(x, tuple):
            header[name]["dtype"] = x[0]
    path.write_bytes(safetensors_bytes(json.dumps(header).encode(), content[8 + size :]))


def safetensors_bytes(header: bytes, data: bytes, length: int | None = None) -> bytes:
    header += b" " * (-len(header) % 8)
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data

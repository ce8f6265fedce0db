"""A small model whose neurons can be packed in slots, those with ReLU without a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats.tiny import FFN, HEADS, KV_HEADS, LAYERS, VOCAB

HIDDEN = 64  # in slots vectors have a multiple of so many weights
HEAD = HIDDEN // HEADS


def q4_0(seed: int, rows: int, columns: int, scale: float) -> tuple[np.ndarray, str]:
    """Random Q4_0 rows, one scale for all: (uint8 (rows, bytes), the type), as write_gguf takes it."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    blocks[..., :2] = np.array([scale], "<f2").view(np.uint8)
    return blocks.reshape(rows, -1), "Q4_0"


def write_relu(write_gguf: Callable[..., Path]) -> Path:
    """A Llama with ReLU, whose FFNs are Q4_0 with few scales, by the fixture write_gguf."""
    tensors = {}
    for layer in range(LAYERS):
        for i, (name, shape) in enumerate(
            {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}.items()
        ):
            tensors[f"blk.{layer}.ffn_{name}.weight"] = q4_0(10 * layer + i, *shape, 0.02 * (layer + 1))
    return write_small(write_gguf, "relu", tensors)


def write_small(
    write_gguf: Callable[..., Path], activation: str, tensors: Mapping[str, Any] | None = None
) -> Path:
    """A Llama in float32 but for `tensors`, by the fixture write_gguf."""
    rng = np.random.default_rng(2)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    found = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return write_gguf(
        keys={"embedding_length": HIDDEN, "hidden_activation": activation},
        tensors=found | dict(tensors or {}),
    )

"""A small model whose neurons can be packed in slots without a loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.formats.tiny import FFN, HIDDEN, LAYERS


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
    return write_gguf(keys={"hidden_activation": "relu"}, tensors=tensors)

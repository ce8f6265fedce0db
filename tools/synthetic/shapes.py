"""The shapes of synthetic models, by name."""

from __future__ import annotations

from tools.random_model.shapes import SHAPES as RANDOM_SHAPES
from tools.random_model.shapes import Shape

SHAPES = {
    # for tests
    "tiny": Shape(4, 256, 1024, 4, 4, 64, 512, 1024),
    # TinyLlama/TinyLlama-1.1B
    "llama-1.1b": RANDOM_SHAPES["llama-1.1b"],
    # meta-llama/Llama-2-7b
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 128, 32000, 4096),
}

"""Writes a synthetic model layer by layer: each is made when its first tensor is to be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.formats.gguf_writer import NewTensor, Progress, write_gguf
from edgellm.formats.types import dequantize
from tools.random_model.shapes import Shape
from tools.random_model.vocabulary import vocabulary
from tools.synthetic.figures import Figures, measure
from tools.synthetic.layer import EPS, make_embeddings, make_layer, make_output
from tools.synthetic.sample import SETTING, sample_tokens

_NORMAL, _CONTROL = 1, 3  # llama.cpp's types of tokens


@dataclass(frozen=True)
class Written:
    """A file of `size` bytes, and what its neurons did for the tokens that were measured."""

    size: int
    model: Figures
    layers: tuple[Figures, ...]


def write(
    path: Path,
    shape: Shape,
    *,
    name: str,
    seed: int = 0,
    active: float = 0.1,
    progress: Progress | None = None,
) -> Written:
    """Write a model of `shape` called "synthetic `name`", in Q4_0, whose FFNs have a ReLU behind the gate.

    active: share of the neurons that shall fire for a token. The same arguments write the same bytes. The
    file appears under its name when it is complete; raises EdgeError where it cannot be written.
    """
    maker = _Maker(shape, seed, active)
    size = write_gguf(path, _keys(shape, f"synthetic {name}"), maker.tensors(), progress=progress)
    layers = tuple(measure(fired) for fired in maker.fired)
    return Written(size, measure(np.concatenate(maker.fired, axis=1)), layers)


class _Maker:
    """Makes the tensors in the order of the file, and keeps what the next ones need."""

    def __init__(self, shape: Shape, seed: int, active: float):
        self.shape, self.seed, self.active = shape, seed, active
        self.fired: list[np.ndarray] = []  # of each layer so far, bool (MEASURED, ffn)
        self._x = np.empty(0, np.float32)  # residual stream of the sample, (T, hidden)
        self._waiting: dict[str, np.ndarray] = {}  # blocks that were made and not written yet

    def tensors(self) -> list[NewTensor]:
        """Every tensor of the file, to be asked for in this order."""
        matrices = [
            NewTensor(n, "Q4_0", size, partial(self._matrix, n)) for n, size in self.shape.matrices().items()
        ]
        norms = [
            NewTensor(n, "F32", (width,), partial(_ones, width)) for n, width in self.shape.norms().items()
        ]
        return matrices + norms

    def _matrix(self, name: str) -> Iterator[np.ndarray]:
        if name not in self._waiting:
            self._make(name)
        yield self._waiting.pop(name)

    def _make(self, name: str) -> None:
        """Make the tensor `name`, and with it the others of its layer."""
        if name == "token_embd.weight":
            blocks = make_embeddings(self.shape, self.seed)
            self._waiting[name] = blocks
            rows = blocks[sample_tokens(self.shape.vocab, self.seed)]
            self._x = dequantize(rows.reshape(len(rows), -1), "Q4_0")
        elif name == "output.weight":
            self._waiting[name] = make_output(self.shape, self.seed)
        else:
            number = len(self.fired)
            made = make_layer(self.shape, number, self.seed, self.active, self._x, SETTING)
            self._x = made.x
            self.fired.append(made.fired[SETTING:])
            self._waiting = {f"blk.{number}.{key}.weight": blocks for key, blocks in made.matrices.items()}


def _ones(width: int) -> Iterator[np.ndarray]:
    yield np.ones(width, "<f4").view(np.uint8)


def _keys(shape: Shape, name: str) -> dict[str, Any]:
    tokens, merges = vocabulary(shape.vocab)
    types = np.array([_CONTROL] + [_NORMAL] * (len(tokens) - 1), np.int32)
    numbers = {
        "context_length": shape.context,
        "block_count": shape.layers,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "hidden_activation": "relu",  # read by edgellm; llama.cpp computes a SiLU
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": EPS,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_base,
        "vocab_size": shape.vocab,
    }
    return {
        "general.architecture": shape.architecture,
        "general.name": name,
        **{f"{shape.architecture}.{key}": value for key, value in numbers.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }

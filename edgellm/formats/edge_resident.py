"""What of a model goes into resident.gguf of its bundle: metadata, and every tensor that is not in slots."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.convert_ternary import forget, row_slices
from edgellm.formats.gguf import CONFIG_KEY
from edgellm.formats.gguf_keys import file_keys
from edgellm.formats.gguf_writer import NewTensor
from edgellm.formats.slots import Role
from edgellm.formats.tensor import Tensor
from edgellm.formats.types import TENSOR_TYPES

# What has a row or an entry for each neuron.
_OF_NEURONS = re.compile(r"blk\.(\d+)\.(?:ffn_(?:gate|up)\.(?:weight|bias)|ffn_sub_norm\.weight)")
_IN_SLOTS = re.compile(r"blk\.\d+\.ffn_(up|down)\.(?:weight|scale)")


def resident_keys(checkpoint: Checkpoint, tokenizer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata, as gguf_writer.encode_value takes it. tokenizer: the tokenizer's keys, of a folder.

    Of a Hugging Face folder that GGUF has no keys for its config.json is kept, as a text.
    """
    config = checkpoint.config
    in_gguf = config.architecture == "bitnet" and config.input_rounding == "int8"
    if checkpoint.format == "gguf" or in_gguf:
        keys = file_keys(checkpoint, "F32")
        del keys["general.file_type"]  # there is no one type
    else:
        keys = {
            "general.architecture": config.architecture,
            "general.name": checkpoint.path.resolve().name,
            CONFIG_KEY: json.dumps(checkpoint.metadata["config"]),
        }
    return keys | dict(tokenizer or {})


def resident_tensors(
    checkpoint: Checkpoint, left_out: Collection[Role], order: np.ndarray | None
) -> list[NewTensor]:
    """Every tensor without those of the roles `left_out` and their factors, in the source's order and type;
    vectors of a Hugging Face folder become F32, as in every GGUF file. order: integers (layers, neurons)."""
    found = []
    for name, tensor in checkpoint.tensors.items():
        slotted = _IN_SLOTS.fullmatch(name)
        if slotted and slotted[1] in left_out:
            continue
        neurons = _OF_NEURONS.fullmatch(name)
        picked = order[int(neurons[1])] if neurons and order is not None else None
        if len(tensor.shape) == 1:
            found.append(_vector(checkpoint, tensor, picked))
        else:
            found.append(_matrix(tensor, picked))
    return found


def _vector(checkpoint: Checkpoint, tensor: Tensor, order: np.ndarray | None) -> NewTensor:
    plain = TENSOR_TYPES[tensor.type].block == 1 and checkpoint.format != "hf"
    kind = tensor.type if plain else "F32"

    def pieces() -> Iterator[np.ndarray]:
        values = tensor.data if plain else tensor.dequantize().view(np.uint8)
        each = values.reshape(tensor.shape[0], -1)
        yield (each if order is None else each[order]).reshape(-1)
        forget(tensor)

    return NewTensor(tensor.name, kind, tensor.shape, pieces)


def _matrix(tensor: Tensor, order: np.ndarray | None) -> NewTensor:
    if order is not None and len(order) != tensor.shape[0]:
        raise EdgeError(f"{tensor.name} has {tensor.shape[0]} rows, which is not one for each neuron.")

    def pieces() -> Iterator[np.ndarray]:
        for rows in row_slices(tensor):
            yield tensor.data[rows if order is None else order[rows]]
        forget(tensor)

    return NewTensor(tensor.name, tensor.type, tensor.shape, pieces)

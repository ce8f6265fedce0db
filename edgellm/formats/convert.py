"""Write a model as a GGUF file with another type of weights, some rows at a time.

The linears of the blocks take the type asked for: a ternary one exactly (convert_ternary.py), any other by
the gguf package's quantisers. Embedding and output keep theirs unless told otherwise, so do biases and what
else a GGUF file holds; vectors of a Hugging Face folder become F32, the one type that llama.cpp takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, file_ids
from edgellm.formats.convert_ternary import forget, row_slices, ternary_matrix
from edgellm.formats.gguf import open_gguf
from edgellm.formats.gguf_keys import FILE_TYPES, file_keys
from edgellm.formats.gguf_writer import NewTensor, Progress, write_gguf
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary_blocks import TERNARY_TYPES
from edgellm.formats.types import TENSOR_TYPES

TYPES = FILE_TYPES
OUTER_TYPES = tuple(name for name in FILE_TYPES if name not in TERNARY_TYPES)
_LINEAR = re.compile(r"(blk\.\d+\.(?:attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down)))\.(weight|scale)")
_OUTER = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Converted:
    """What was written. rounded: matrices of floats that were rounded to ternary."""

    path: Path
    bytes: int
    architecture: str
    types: Mapping[str, int]  # tensors of each type
    rounded: int


def convert(
    checkpoint: Checkpoint, path: Path, type_name: str, *, outer: str | None = None,
    tokenizer: Mapping[str, Any] | None = None, progress: Progress | None = None,
) -> Converted:  # fmt: skip
    """Write `checkpoint` to `path` with linears of the type `type_name`, one of TYPES.

    outer: type of embedding and output, one of OUTER_TYPES; None keeps that of the source. tokenizer: the
    tokenizer's keys, for a Hugging Face folder, which has none in GGUF form. The file is opened before it
    appears. Raises EdgeError, one sentence, for a model that the type does not fit, where the file cannot be
    written, and for a source that changed meanwhile; nothing is left behind then.
    """
    _check_arguments(checkpoint, path, type_name, outer)
    keys = {**file_keys(checkpoint, type_name), **(tokenizer or {})}
    tensors, rounded = _plan(checkpoint, type_name, outer)
    architecture = ""

    def check(part: Path) -> None:
        if file_ids([Path(file.path) for file in checkpoint.files]) != checkpoint.files:
            raise EdgeError(f"{checkpoint.path}: the model changed while it was read; convert it again.")
        nonlocal architecture
        try:
            architecture = open_gguf(part).metadata["general.architecture"]
        except EdgeError as error:
            raise EdgeError(str(error).replace(str(part), str(path))) from None

    size = write_gguf(path, keys, tensors, check=check, progress=progress)
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    return Converted(path, size, architecture, types, rounded)


def _check_arguments(checkpoint: Checkpoint, path: Path, type_name: str, outer: str | None) -> None:
    if type_name not in TYPES:
        raise EdgeError(f"A model cannot be converted to {type_name}; choose one of {', '.join(TYPES)}.")
    if checkpoint.format == "edge":
        raise EdgeError(f"{checkpoint.path}: this is a bundle; convert the model that it was made from.")
    if outer is not None and outer not in OUTER_TYPES:
        raise EdgeError(
            f"Embedding and output cannot be of type {outer}; choose one of {', '.join(OUTER_TYPES)}."
        )
    if os.path.realpath(path) in {file.path for file in checkpoint.files}:
        raise EdgeError(f"{path}: this is the model that is to be converted; give the result another name.")


def _plan(checkpoint: Checkpoint, type_name: str, outer: str | None) -> tuple[list[NewTensor], int]:
    """The tensors to write, in the source's order, and how many of them are rounded."""
    planned: list[NewTensor] = []
    rounded = 0
    bitnet = checkpoint.config.architecture == "bitnet"
    for name, tensor in checkpoint.tensors.items():
        linear = _LINEAR.fullmatch(name)
        if linear is None:
            planned.append(_other(checkpoint, tensor, outer))
        elif type_name not in TERNARY_TYPES:
            planned.append(_cast(checkpoint, tensor, type_name if linear[2] == "weight" else "F32"))
        elif linear[2] == "weight":
            scale = checkpoint.tensors.get(f"{linear[1]}.scale")
            matrix = ternary_matrix(checkpoint.path, tensor, scale, type_name, bitnet)
            planned.append(NewTensor(name, type_name, tensor.shape, matrix.pieces))
            rounded += matrix.rounded
            if matrix.factor is not None:
                planned.append(_factor(f"{linear[1]}.scale", matrix.factor))
    return planned, rounded


def _factor(name: str, value: np.float32) -> NewTensor:
    data = np.array([value], "<f4").view(np.uint8)
    return NewTensor(name, "F32", (1,), lambda: iter([data]))


def _other(checkpoint: Checkpoint, tensor: Tensor, outer: str | None) -> NewTensor:
    """A tensor that is no linear of a block."""
    if tensor.name in _OUTER and outer is not None:
        return _cast(checkpoint, tensor, outer)
    if checkpoint.format == "hf" and len(tensor.shape) == 1:
        return _cast(checkpoint, tensor, "F32")
    return _cast(checkpoint, tensor, tensor.type)


def _cast(checkpoint: Checkpoint, tensor: Tensor, type_name: str) -> NewTensor:
    """The tensor in the type `type_name`, byte for byte where it has that type."""
    block = TENSOR_TYPES[type_name].block
    if tensor.shape[-1] % block:
        raise EdgeError(
            f"{checkpoint.path}: the matrix {tensor.name} has rows of {tensor.shape[-1]} weights, and "
            f"{type_name} takes multiples of {block} alone; choose F16."
        )

    def pieces() -> Iterator[np.ndarray]:
        for rows in row_slices(tensor):
            if tensor.type == type_name:
                yield tensor.data[rows]
            else:
                yield _quantized(checkpoint.path, tensor, rows, type_name)
        forget(tensor)

    return NewTensor(tensor.name, type_name, tensor.shape, pieces)


def _quantized(path: Path, tensor: Tensor, rows: slice, type_name: str) -> np.ndarray:
    """Some rows as bytes of the type `type_name`."""
    from gguf import GGMLQuantizationType  # late: gguf is slow to import
    from gguf.quants import quantize

    values = tensor.dequantize(rows)
    if not np.isfinite(values).all():
        raise EdgeError(f"{path}: the tensor {tensor.name} holds values that are not finite.")
    with np.errstate(over="ignore"):
        data: np.ndarray = quantize(values, GGMLQuantizationType[type_name])
    if type_name == "F16" and not np.isfinite(data).all():
        raise EdgeError(
            f"{path}: the tensor {tensor.name} holds values above 65504, too large for F16; choose BF16."
        )
    return np.ascontiguousarray(data).view(np.uint8)

"""Tensor types: how many bytes a block of weights takes, and its float32 values.

Names and block layouts are ggml's (ggml-common.h). Quantised types are decoded by the gguf package;
plain floats and integers here, so that opening a BF16 model does not import gguf.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError


@dataclass(frozen=True)
class TensorType:
    """Storage of one tensor type: every `block` consecutive elements of a row take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.nbytes / self.block


# name: (elements per block, bytes per block)
_SIZES = {
    "F64": (1, 8),
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
TENSOR_TYPES: dict[str, TensorType] = {name: TensorType(name, *size) for name, size in _SIZES.items()}

_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "<i1", "I16": "<i2", "I32": "<i4"}


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row of `columns` elements.

    Raises EdgeError for a type edgellm does not know and for a row that is not a whole number of blocks.
    """
    kind = TENSOR_TYPES.get(type_name)
    if kind is None:
        raise EdgeError(f"Tensor type {type_name} is not supported; use one of {', '.join(TENSOR_TYPES)}.")
    if columns % kind.block:
        raise EdgeError(
            f"A row of {columns} elements is not a multiple of the {type_name} block of {kind.block}."
        )
    return columns // kind.block * kind.nbytes


def dequantize(data: np.ndarray, type_name: str) -> np.ndarray:
    """float32 values of raw rows.

    data: uint8 (..., bytes per row). Returns float32 (..., elements per row), always a fresh array
    that the caller may change. Raises EdgeError for an unknown type or a row of the wrong length.
    """
    kind = TENSOR_TYPES.get(type_name)
    if kind is None:
        raise EdgeError(f"Tensor type {type_name} is not supported; use one of {', '.join(TENSOR_TYPES)}.")
    if data.shape[-1] % kind.nbytes:
        raise EdgeError(
            f"A row of {data.shape[-1]} bytes is not a multiple of the {type_name} block of {kind.nbytes}."
        )
    data = np.ascontiguousarray(data)
    if type_name in _PLAIN:
        return data.view(_PLAIN[type_name]).astype(np.float32)
    if type_name == "BF16":
        # bfloat16 is the upper half of a float32
        wide = data.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    # a zero-row selection (expert nobody chose, empty slice) has nothing to decode
    if data.size == 0:
        return np.empty((*data.shape[:-1], data.shape[-1] // kind.nbytes * kind.block), np.float32)
    return np.ascontiguousarray(gguf_dequantize(data, GGMLQuantizationType[type_name]), dtype=np.float32)

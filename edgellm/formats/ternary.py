"""Ternary weights of BitNet checkpoints from Hugging Face, turned into TQ2_0 when they are first used.

Packed: uint8 (rows / 4, columns), two bits per weight holding w + 1; bits 2i of packed row r are row
i * rows / 4 + r. Master: the weights that training went on with, which the model rounds on the fly to
{-1, 0, 1} times their mean magnitude (BitNet b1.58, arXiv:2402.17764, equations 1 to 3).
Source of both: transformers, integrations/bitnet.py.

The trits become TQ2_0 blocks with the scale 1, or float32 where the columns do not fill blocks of 256;
the factor of the matrix becomes a second tensor, "blk.N.attn_q.scale". So nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary_blocks import pack_blocks
from edgellm.formats.types import TENSOR_TYPES, dequantize, row_bytes

_BLOCK = TENSOR_TYPES["TQ2_0"].block
_ROWS_AT_ONCE = 256  # bounds the float32 copies made while rounding master weights


class LazyTensor(Tensor):
    """A tensor whose bytes are computed when they are first asked for, then kept until forget()."""

    def __init__(self, name: str, type: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]):
        for field, value in {"name": name, "type": type, "shape": shape, "_make": make}.items():
            object.__setattr__(self, field, value)  # Tensor is frozen

    @cached_property
    def data(self) -> np.ndarray:
        make: Callable[[], np.ndarray] = self.__dict__["_make"]
        data = make()
        data.flags.writeable = False
        return data

    def forget(self) -> None:
        """Free the bytes; they are computed again when asked for."""
        self.__dict__.pop("data", None)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * row_bytes(self.type, self.shape[-1])


def unpack_ternary(
    path: Path, name: str, packed: Tensor, scale: Tensor, inverted: bool
) -> dict[str, LazyTensor]:
    """name.weight and name.scale of a packed matrix; `inverted`: the file holds 1 / factor."""
    rows, columns = 4 * packed.shape[0], packed.shape[-1]

    def codes() -> np.ndarray:
        raw = packed.data
        if (raw & (raw >> 1) & 0x55).any():
            raise EdgeError(
                f"{path}: the tensor {packed.name} holds values other than -1, 0 and 1; it is damaged."
            )
        return np.concatenate([(raw >> shift) & 3 for shift in (0, 2, 4, 6)])

    def factor() -> np.ndarray:
        value = dequantize(scale.data, scale.type).reshape(-1)
        if value.size != 1 or not np.isfinite(value[0]) or value[0] <= 0:
            raise EdgeError(
                f"{path}: the tensor {scale.name} should hold one positive number; it is damaged."
            )
        return (np.float32(1) / value if inverted else value).view(np.uint8)

    return ternary_pair(name, (rows, columns), codes, factor)


def round_to_ternary(path: Path, name: str, master: Tensor) -> dict[str, LazyTensor]:
    """name.weight and name.scale of master weights, rounded as the model does at run time."""
    rounding = _Rounding(path, master)
    return ternary_pair(name, (master.shape[0], master.shape[1]), rounding.codes, rounding.factor)


class _Rounding:
    """Of one matrix, piece by piece, so that no float32 copy of the whole is made."""

    def __init__(self, path: Path, master: Tensor):
        self.path, self.master = path, master

    def pieces(self) -> Iterator[np.ndarray]:
        for i in range(0, self.master.shape[0], _ROWS_AT_ONCE):
            yield self.master.dequantize(slice(i, i + _ROWS_AT_ONCE))

    @cached_property
    def inverse(self) -> np.float32:
        """1 / mean |w|."""
        total = sum(float(np.abs(piece).sum(dtype=np.float64)) for piece in self.pieces())
        mean = np.float32(total / self.master.elements)
        if not np.isfinite(mean):
            raise EdgeError(f"{self.path}: the tensor {self.master.name} holds values that are not finite.")
        return np.float32(1) / max(mean, np.float32(1e-5))

    def codes(self) -> np.ndarray:
        """uint8 (rows, columns): trit + 1."""
        rounded = (np.clip(np.rint(piece * self.inverse), -1, 1) for piece in self.pieces())
        return np.concatenate([(piece + 1).astype(np.uint8) for piece in rounded])

    def factor(self) -> np.ndarray:
        """1 / inverse, rounded to the type of the weights as the model itself does; float32 as bytes."""
        value = np.array([np.float32(1) / self.inverse], np.float32)
        if self.master.type == "BF16":
            bits = value.view(np.uint32)
            value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
        elif self.master.type == "F16":
            value = value.astype(np.float16).astype(np.float32)
        return value.view(np.uint8)


def ternary_pair(
    name: str,
    shape: tuple[int, int],
    codes: Callable[[], np.ndarray],
    factor: Callable[[], np.ndarray],
    compact: bool = False,
) -> dict[str, LazyTensor]:
    """name.weight and name.scale of the matrix factor() * (codes() - 1).

    codes() returns uint8 (rows, columns), trits + 1; factor() one float32 as bytes, uint8 (4,). compact: rows
    that do not fill blocks of TQ2_0 become Q4_0 with the scale 1 where they fill its blocks of 32. That is
    as exact, and an eighth of the size of float32, but lets an executor round the activations.
    """
    weight, scale = f"{name}.weight", f"{name}.scale"
    narrow = compact and shape[1] % TENSOR_TYPES["Q4_0"].block == 0
    kind = "TQ2_0" if shape[1] % _BLOCK == 0 else "Q4_0" if narrow else "F32"
    encode = {"TQ2_0": _tq2_0, "Q4_0": _q4_0, "F32": _f32}[kind]
    return {
        weight: LazyTensor(weight, kind, shape, lambda: encode(codes())),
        scale: LazyTensor(scale, "F32", (1,), factor),
    }


def _f32(codes: np.ndarray) -> np.ndarray:
    """Trits + 1, uint8 (rows, columns), as float32 rows."""
    return (codes.astype(np.float32) - 1).view(np.uint8)


def _q4_0(codes: np.ndarray) -> np.ndarray:
    """Trits + 1, uint8 (rows, columns), as Q4_0 rows: each block is the float16 scale 1, then 16 bytes. The
    nibbles of byte m, which hold trit + 8, are the elements m and 16 + m.
    """
    rows, columns = codes.shape
    halves = (codes + np.uint8(7)).reshape(rows, columns // 32, 2, 16)
    packed = np.empty((rows, columns // 32, 18), np.uint8)
    packed[..., :2] = np.array([1], "<f2").view(np.uint8)
    packed[..., 2:] = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed.reshape(rows, -1)


def _tq2_0(codes: np.ndarray) -> np.ndarray:
    """Trits + 1, uint8 (rows, columns), as TQ2_0 rows whose blocks have the scale 1."""
    rows, columns = codes.shape
    return pack_blocks(codes, np.ones((rows, columns // _BLOCK), np.float16), "TQ2_0")

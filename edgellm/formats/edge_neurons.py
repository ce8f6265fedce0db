"""A model's FFN matrices as the vectors of its neurons: rows of up and gate, columns of down.

    in the file                         becomes      exact?
    ternary, one scale to a row         t2           yes, for rows and for columns
    Q4_0, Q8_0, TQ: rows                q4_0, q8_0   yes: the same codes and scales
    Q4_0, Q8_0, TQ: columns             q4_0, q8_0   where the 32 rows that become a block share their scale
    all others                          q4_0, q8_0   no: quantised anew, and the difference is measured

The blocks of a matrix run along its rows. So each weight of a column of down is from another block, which has
a scale of its own, unless the whole matrix was made with few scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.slots import UNIT, Codec, Role, arrange, pack_trits, vector_bytes
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor
from edgellm.formats.ternary_blocks import TERNARY_TYPES, pack_blocks, unpack_blocks
from edgellm.formats.types import TENSOR_TYPES

_AT_ONCE = 1 << 22  # weights decoded at a time: 16 MiB as float32, of which quantising makes a few copies
_NEURONS_AT_ONCE = 1024
_GROUP = 64  # rows of down that are taken together: a multiple of every codec's block
_NARROW = 5.0  # bits a weight, scales included, up to which a source counts as one of four bits
# What a code means: value = scale * (code - zero), modulo 256 for Q8_0, whose codes are int8.
_ZEROS = {"Q4_0": 8, "Q8_0": 0, "TQ1_0": 1, "TQ2_0": 1}
_EMPTY = {kind: pack_blocks(np.ones((1, 256), np.uint8), np.zeros((1, 1)), kind)[0] for kind in TERNARY_TYPES}


@dataclass(frozen=True)
class Loss:
    """Sums of squares, of what quantising anew changed and of the weights themselves."""

    error: float = 0.0
    weights: float = 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.error + other.error, self.weights + other.weights)

    @property
    def relative(self) -> float:
        """||w' - w|| / ||w||."""
        return float(np.sqrt(self.error / self.weights)) if self.weights else 0.0


@dataclass(frozen=True)
class Matrix:
    """A matrix of the model at `path`, every value of it times `factor` (its tensor "NAME.scale")."""

    path: Path
    tensor: Tensor
    factor: np.float32

    def forget(self) -> None:
        """Let go of bytes that were computed."""
        if isinstance(self.tensor, LazyTensor):
            self.tensor.forget()

    @property
    def rows_are_ternary(self) -> bool:
        """Is every row trits times one scale?"""
        tensor = self.tensor
        if isinstance(tensor, LazyTensor):
            return True  # made from trits, with the scale 1
        if tensor.type not in TERNARY_TYPES:
            return False
        step = max(1, _AT_ONCE // tensor.shape[1])
        return all(
            _row_scales(tensor.data[i : i + step], tensor.type) is not None
            for i in range(0, tensor.shape[0], step)
        )

    def trits(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ternary rows: codes 0, 1 and 2, uint8 (r, columns), and scales, float32 (r,)."""
        tensor = self.tensor
        if tensor.type not in TERNARY_TYPES:
            codes = (np.sign(tensor.dequantize(rows)) + 1).astype(np.uint8)
            return codes, np.full(len(codes), self.factor)
        data = tensor.data[rows]
        scales = _row_scales(data, tensor.type)
        assert scales is not None, "rows_are_ternary was asked before"
        return self._unpacked(data)[0], scales * self.factor

    def integers(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a type in _ZEROS: codes uint8 (r, columns) and scales float16 (r, columns / block)."""
        data, kind = self.tensor.data[rows], self.tensor.type
        if kind in TERNARY_TYPES:
            return self._unpacked(data)
        blocks = data.reshape(len(data), -1, TENSOR_TYPES[kind].nbytes)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
        body = blocks[..., 2:]
        if kind == "Q8_0":
            return np.ascontiguousarray(body).reshape(len(data), -1), scales
        codes = np.empty((*body.shape[:2], 2, 16), np.uint8)
        np.bitwise_and(body, 15, out=codes[:, :, 0])
        np.right_shift(body, 4, out=codes[:, :, 1])
        return codes.reshape(len(data), -1), scales

    def values(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 (r, columns)."""
        values = self.tensor.dequantize(rows)
        if self.factor != 1:
            values *= self.factor
        if not np.isfinite(values).all():
            raise EdgeError(f"{self.path}: the tensor {self.tensor.name} holds values that are not finite.")
        return values

    def _unpacked(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return unpack_blocks(data, self.tensor.type)
        except ValueError:
            raise EdgeError(
                f"{self.path}: the tensor {self.tensor.name} holds values other than -1, 0 and 1; it is "
                "damaged."
            ) from None


def _row_scales(data: np.ndarray, kind: str) -> np.ndarray | None:
    """float32 (r,), the one scale of each row; None where a row has several. Blocks of nothing but zeros may
    have any: quantisers give them the scale 0."""
    blocks = data.reshape(len(data), -1, TENSOR_TYPES[kind].nbytes)
    scales = np.ascontiguousarray(blocks[..., -2:]).view("<f2")[..., 0].astype(np.float32)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    others = scales != largest
    if (blocks[others][:, :-2] != _EMPTY[kind][:-2]).any():
        return None
    return largest[:, 0]


def choose_codecs(
    matrices: Mapping[Role, Sequence[Matrix]], hidden: int, down: Codec | None
) -> dict[Role, Codec]:
    """One codec to a role, for the matrices of all layers; down: what is wished for the columns.

    Raises EdgeError for vectors that are not whole blocks.
    """
    codecs: dict[Role, Codec] = {}
    for role, layers in matrices.items():
        kinds = {matrix.tensor.type for matrix in layers}
        if role == "down" and down is not None:
            codecs[role] = down
        elif all(matrix.rows_are_ternary for matrix in layers):
            codecs[role] = "t2"
        elif role == "down":
            narrow = all(TENSOR_TYPES[kind].bits <= _NARROW for kind in kinds)
            codecs[role] = "q4_0" if narrow else "q8_0"
        else:
            same = kinds == {"Q4_0"} and all(matrix.factor == 1 for matrix in layers)
            codecs[role] = "q4_0" if same else "q8_0"
        if hidden % UNIT:
            raise EdgeError(
                f"{layers[0].path}: the hidden size is {hidden}, not a multiple of {UNIT}, which neurons in "
                "slots need; pack it with --mode stream."
            )
    return codecs


def row_vectors(matrix: Matrix, role: Role, codec: Codec, neurons: np.ndarray) -> tuple[np.ndarray, Loss]:
    """The rows `neurons`, integers (n,), of up or gate: uint8 (n, bytes)."""
    kind = matrix.tensor.type
    if codec == "t2":
        codes, scales = matrix.trits(neurons)
        tail = np.ascontiguousarray(scales, "<f4").view(np.uint8).reshape(-1, 4)
        return np.concatenate([pack_trits(codes), tail], axis=1), Loss()
    if matrix.factor == 1 and kind == codec.upper():
        return arrange(matrix.tensor.data[neurons], codec), Loss()
    if matrix.factor == 1 and _fits(kind, codec):
        codes, scales = matrix.integers(neurons)
        scales = np.repeat(scales, TENSOR_TYPES[kind].block // 32, axis=1)
        return arrange(_blocks(_recoded(codes, kind, codec), scales, codec), codec), Loss()
    blocks, loss = _quantized(matrix, matrix.values(neurons), codec)
    return arrange(blocks, codec), loss


def column_vectors(
    matrix: Matrix, codec: Codec, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, Loss]:
    """The columns of down (hidden, n) in the order `order`, integers (n,): uint8 (n, bytes), for t2 also
    the scales of the rows, float32 (hidden,)."""
    hidden, n = matrix.tensor.shape
    vectors = np.empty((n, vector_bytes("down", codec, hidden)), np.uint8)
    scales = np.empty(hidden, np.float32) if codec == "t2" else None
    loss = Loss()
    step = max(1, _AT_ONCE // (n * _GROUP)) * _GROUP
    for first in range(0, hidden, step):
        rows = slice(first, min(first + step, hidden))
        begin = vector_bytes("down", codec, first)
        part = vectors[:, begin : begin + vector_bytes("down", codec, rows.stop - first)]
        if scales is not None:
            codes, scales[rows] = matrix.trits(rows)
            _put_trits(part, codes, order)
        elif not (_fits(matrix.tensor.type, codec) and _put_exactly(part, matrix, rows, codec, order)):
            values = np.ascontiguousarray(matrix.values(rows)[:, order].T)
            part[:], lost = _quantized(matrix, values, codec)
            loss += lost
    if codec != "t2":  # some at a time: it takes a copy
        for begin in range(0, n, _NEURONS_AT_ONCE):
            some = vectors[begin : begin + _NEURONS_AT_ONCE]
            some[:] = arrange(some, codec)
    return vectors, scales, loss


def _put_trits(part: np.ndarray, codes: np.ndarray, order: np.ndarray) -> None:
    """pack_trits of the columns of codes (rows, n)."""
    quarters = codes.reshape(-1, 4, 16, codes.shape[1])
    packed = quarters[:, 0].copy()
    for i in (1, 2, 3):
        packed |= quarters[:, i] << np.uint8(2 * i)
    _put_transposed(part.reshape(len(part), -1, 16), packed.take(order, axis=2))


def _put_exactly(part: np.ndarray, matrix: Matrix, rows: slice, codec: Codec, order: np.ndarray) -> bool:
    """Write the columns with their codes unchanged, if each has one scale, a float16, to 32 rows."""
    kind, n = matrix.tensor.type, len(order)
    codes, halves = matrix.integers(rows)
    scales = halves.astype(np.float64) * matrix.factor
    groups = scales.reshape(-1, 32, scales.shape[1])
    one = groups[:, 0]
    with np.errstate(over="ignore"):
        half = one.astype("<f2")
    if not (groups == one[:, None]).all() or not (half == one).all():
        return False
    codes = _recoded(codes, kind, codec).reshape(-1, 32, n)
    if codec == "q4_0":  # half of the bytes, before they are moved about
        codes = codes[:, :16] | codes[:, 16:] << np.uint8(4)
    blocks = part.reshape(n, len(one), -1)
    wide = np.repeat(half, TENSOR_TYPES[kind].block, axis=1)[:, order]
    blocks[..., :2] = np.ascontiguousarray(wide.T).view(np.uint8).reshape(n, -1, 2)
    _put_transposed(blocks[..., 2:], codes.take(order, axis=2))
    return True


def _put_transposed(out: np.ndarray, data: np.ndarray) -> None:
    """data (blocks, bytes, n) into out (n, blocks, bytes), some neurons at a time: a few hundred stay in the
    processor's cache, which makes it several times as fast."""
    for first in range(0, len(out), 512):
        out[first : first + 512] = data[:, :, first : first + 512].transpose(2, 0, 1)


def _fits(kind: str, codec: Codec) -> bool:
    """Does the codec have every code of a type?"""
    return kind in _ZEROS and (codec == "q8_0" or kind != "Q8_0")


def _recoded(codes: np.ndarray, kind: str, codec: Codec) -> np.ndarray:
    """Codes of a type as those of q4_0 (value + 8) or q8_0 (the value's int8, as uint8)."""
    shift = (8 if codec == "q4_0" else 0) - _ZEROS[kind]
    return codes + np.uint8(shift % 256) if shift else codes


def _blocks(codes: np.ndarray, scales: np.ndarray, codec: Codec) -> np.ndarray:
    """q4_0 or q8_0 rows of codes (r, k) as _recoded makes them and float16 scales (r, k / 32)."""
    body = codes.reshape(len(codes), -1, 32)
    if codec == "q4_0":
        body = body[..., :16] | body[..., 16:] << np.uint8(4)
    heads = np.ascontiguousarray(scales, "<f2").view(np.uint8).reshape(len(codes), -1, 2)
    return np.concatenate([heads, body], axis=-1).reshape(len(codes), -1)


def _quantized(matrix: Matrix, values: np.ndarray, codec: Codec) -> tuple[np.ndarray, Loss]:
    """float32 rows as blocks of the codec, by ggml's rule, and what that changed."""
    from gguf import GGMLQuantizationType  # late: gguf is slow to import
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[codec.upper()]
    with np.errstate(over="ignore", invalid="ignore"):
        data = quantize(values, kind)
        error = dequantize(data, kind) - values
        lost = Loss(_squares(error), _squares(values))
    if not np.isfinite(lost.error):
        raise EdgeError(
            f"{matrix.path}: the tensor {matrix.tensor.name} holds values too large for {codec.upper()}."
        )
    return data, lost


def _squares(values: np.ndarray) -> float:
    """The sum in float64, without a copy of the values in it."""
    return sum(float(np.dot(row, row)) for row in _as_wide(values))


def _as_wide(values: np.ndarray) -> Iterator[np.ndarray]:
    flat = values.reshape(-1)
    return (flat[i : i + (1 << 20)].astype(np.float64) for i in range(0, flat.size, 1 << 20))

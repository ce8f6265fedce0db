"""Packs tiles of one weight: the codes by a kernel, scales and floats with NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.native.codes import QUANTIZED_TYPES, Codes, code_form, decode_codes
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor
from edgellm.kernels.layout import ROW_SCALES, ROWS, Pack, TileLayout, align, record
from edgellm.kernels.memory import address, release_pages
from edgellm.kernels.team import call_kernel
from edgellm.program.ops import Weight

FLOAT_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
VECTOR = "vector"  # norms and biases: float32, as they are
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_FLOAT_ITEMS = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}


@dataclass(frozen=True)
class Packed:
    """A packed weight of n rows and k inputs. form: a TileLayout, the name of a float type, or VECTOR."""

    address: int
    n: int
    k: int
    form: TileLayout | str
    zero_shift: int = 0

    @property
    def tiles(self) -> int:
        return 1 if self.form == VECTOR else -(-self.n // ROWS)

    @property
    def stride(self) -> int:
        """Bytes of a tile."""
        if isinstance(self.form, TileLayout):
            return self.form.stride
        return align(4 * self.k if self.form == VECTOR else self.k * ROWS * _FLOAT_BYTES[self.form])

    @property
    def nbytes(self) -> int:
        return self.tiles * self.stride


def form_of(type_name: str, k: int) -> TileLayout | str:
    """The layout that a tensor type is packed into. Raises EdgeError for a type without one."""
    if type_name in FLOAT_KINDS:
        return FLOAT_KINDS[type_name]
    if type_name in QUANTIZED_TYPES:
        codes = code_form(type_name)
        return TileLayout(k, codes.bits, codes.asym, codes.block)
    raise EdgeError(f"Tensor type {type_name} cannot be run by the native executor.")


def kernel_form(form: TileLayout | str) -> str:
    """Parameters of the kernel for a form: "kind=f16" or "bits=4,asym=1,block=32"."""
    if isinstance(form, TileLayout):
        return f"bits={form.bits},asym={int(form.asym)},block={form.block}"
    return f"kind={form}"


def pack_kernel(form: TileLayout) -> str:
    return f"pack/{kernel_form(form)}"


def vector_values(tensor: Tensor, weight: Weight) -> np.ndarray:
    """float32 values of a norm or bias."""
    return tensor.dequantize(slice(*weight.rows) if weight.rows else None).reshape(-1)


def pack_tiles(
    tensor: Tensor, weight: Weight, packed: Packed, tiles: range, area: np.ndarray, kernels: Mapping[str, int]
) -> None:
    """The given tiles of a weight into `area`, zeroed uint8 (tiles, stride). Releases the source's pages."""
    if packed.form == VECTOR:
        area.reshape(-1)[: 4 * packed.k] = vector_values(tensor, weight).view(np.uint8)
        return
    first = weight.rows[0] if weight.rows else 0
    rows = slice(first + tiles.start * ROWS, first + min(tiles.stop * ROWS, packed.n))
    data = tensor.data[rows]
    if isinstance(packed.form, TileLayout):
        codes = decode_codes(data, tensor.type)
        _store_scales(codes, packed.form, area, weight.scale)
        _store_codes(kernels[pack_kernel(packed.form)], codes.q, packed.form, area)
    else:
        item = _FLOAT_ITEMS[packed.form]
        values = data if weight.scale == 1 else tensor.dequantize(rows) * np.float32(weight.scale)
        _store_floats(np.ascontiguousarray(values).view(item), area)
    if not isinstance(tensor, LazyTensor):
        release_pages(data)  # the packed copy serves from here on


def _store_codes(kernel: int, codes: np.ndarray, form: TileLayout, area: np.ndarray) -> None:
    """(n, k) uint8 codes, by the kernel at that address."""
    codes = np.ascontiguousarray(codes)
    args = record(
        Pack, SOURCE=address(codes), N=codes.shape[0], K=codes.shape[1], WEIGHT=address(area),
        TILE_STRIDE=form.stride, TILES=len(area),
    )  # fmt: skip
    call_kernel(kernel, address(args))


def _by_tile(values: np.ndarray, tiles: int) -> np.ndarray:
    """(n, columns) to (tiles, columns, 16), rows beyond n zero."""
    n, columns = values.shape
    if n < tiles * ROWS:
        values = np.concatenate([values, np.zeros((tiles * ROWS - n, columns), values.dtype)])
    return values.reshape(tiles, ROWS, columns).transpose(0, 2, 1)


def _store_floats(values: np.ndarray, area: np.ndarray) -> None:
    k, width = values.shape[1], values.dtype.itemsize
    strides = (area.strides[0], ROWS * width, width)
    out = np.ndarray((area.shape[0], k, ROWS), values.dtype, area.data, strides=strides)
    out[...] = _by_tile(values, area.shape[0])


def _store_scales(codes: Codes, form: TileLayout, area: np.ndarray, factor: float) -> None:
    """Scales as float16. Those that a K-quant computes in float32 are taken relative to the row's largest,
    which keeps them clear of float16's subnormal range: the rounding is at most 2^-11."""
    tiles, blocks = area.shape[0], form.blocks
    row = np.ones((len(codes.scale), 1), np.float32)
    if not codes.exact_half:
        row = np.abs(codes.scale).max(axis=1, keepdims=True)
        if codes.minimum is not None:
            row = np.maximum(row, np.abs(codes.minimum).max(axis=1, keepdims=True))
        row[row == 0] = 1

    line = np.zeros((tiles * ROWS, form.groups * form.group * (2 if form.asym else 1)), np.float16)
    if codes.minimum is not None:
        line[: len(row), 0::2], line[: len(row), 1::2] = codes.scale / row, codes.minimum / row
    else:
        line[: len(row), :blocks] = codes.scale / row
    strides = (area.strides[0], form.group_stride, 2 * ROWS, 2)
    lines = np.ndarray((tiles, form.groups, 2, ROWS), np.float16, area.data, ROW_SCALES, strides)
    lines[...] = line.reshape(tiles, ROWS, form.groups, 2).transpose(0, 2, 3, 1)
    heads = np.ndarray((tiles, ROWS), np.float32, area.data, 0, (area.strides[0], 4))
    heads[...] = np.resize(row[:, 0] * np.float32(factor), heads.shape)  # what padding rows hold is no matter

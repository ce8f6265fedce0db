"""What a weight is packed into, and the packing of some of its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor
from edgellm.kernels.codes import CODE_FORMS, pack_scratch_bytes
from edgellm.kernels.layout import MOST_BASE3_INPUTS, ROWS, Base3Layout, Pack, TileLayout, align, record
from edgellm.kernels.memory import address, aligned, release_pages
from edgellm.kernels.team import call_kernel
from edgellm.program.ops import Weight

FLOAT_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
Form = TileLayout | Base3Layout | str
VECTOR = "vector"  # norms and biases: float32, as they are
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
TERNARY = ("TQ1_0", "TQ2_0")
# The codes of a block of zeros: 121 of 243, scaled to 256 and rounded up, or for a byte with a digit less the
# same of 120; and the code 1 four times.
_ZEROS = {"TQ1_0": np.array([128] * 48 + [127] * 4, np.uint8), "TQ2_0": np.full(64, 0x55, np.uint8)}
_LARGEST_HALF = 0x7BFF  # the bits of 65504; above: infinities, NaN and negative numbers
_ROWS_AT_ONCE = 256


class Part(NamedTuple):
    """Neighbouring tiles of a matrix. unit: number of the read that brings them, where they come and go."""

    first: int
    tiles: int
    address: int
    unit: int | None = None


@dataclass(frozen=True)
class Packed:
    """A packed weight of n rows and k inputs. form: a layout of codes, a float type's name, or VECTOR.

    parts: where its tiles lie, if they are not all at `address`.
    """

    address: int
    n: int
    k: int
    form: Form
    zero_shift: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        """Of a tile."""
        return ROWS if isinstance(self.form, str) else self.form.rows

    @property
    def tiles(self) -> int:
        """Pieces of memory: tiles, or what a Base3Layout has of five tiles."""
        return 1 if self.form == VECTOR else -(-self.n // self.rows)

    @property
    def stride(self) -> int:
        """Bytes of a tile."""
        if not isinstance(self.form, str):
            return self.form.stride
        return align(4 * self.k if self.form == VECTOR else self.k * ROWS * _FLOAT_BYTES[self.form])

    @property
    def nbytes(self) -> int:
        return self.tiles * self.stride


def form_of(type_name: str, k: int, uniform: bool = False, base3: bool = False) -> Form:
    """The layout that a tensor type is packed into. Of a ternary one, `uniform`: its rows have one scale;
    base3: those should be packed in base 3. Raises EdgeError for a type without a layout."""
    if type_name in FLOAT_KINDS:
        return FLOAT_KINDS[type_name]
    if type_name in CODE_FORMS:
        uniform = uniform and type_name in TERNARY
        if uniform and base3 and k <= MOST_BASE3_INPUTS:
            return Base3Layout(k)
        return CODE_FORMS[type_name].layout(k, scaled=not uniform)
    raise EdgeError(f"Tensor type {type_name} cannot be run by the native executor.")


def matrix_shape(weight: Weight, tensor: Tensor) -> tuple[int, int]:
    """(rows, inputs) of a weight that is all of a tensor or some of its rows."""
    first, end = weight.rows or (0, tensor.shape[0])
    return end - first, tensor.shape[-1]


def kernel_form(form: Form) -> str:
    """Parameters of the kernel for a form: "kind=f16" or "bits=4,asym=1,block=32"; "base3" for its layout."""
    if isinstance(form, Base3Layout):
        return "base3"
    if isinstance(form, TileLayout):
        scaled = "" if form.scaled else ",scaled=0"
        return f"bits={form.bits},asym={int(form.asym)},block={form.block}{scaled}"
    return f"kind={form}"


def linear_kernel(form: Form, planes: int, rounded: bool) -> str:
    """Name of the kernel y = W x. planes: of int8 activations, which float weights do not take; rounded: each
    row of them has a single scale."""
    whole = ",rounded=1" if rounded else ""
    if isinstance(form, Base3Layout):
        return f"linear_base3/planes={planes}{whole}"
    if isinstance(form, TileLayout):
        return f"linear_q/{kernel_form(form)},planes={planes}{whole if not form.scaled else ''}"
    return f"linear_f/{kernel_form(form)}"


def pack_kernel(tensor: Tensor, weight: Weight, form: Form) -> str:
    """Name of the kernel that packs a matrix."""
    if isinstance(form, Base3Layout):
        return f"pack_base3/type={tensor.type}"
    scaled = tensor.type in FLOAT_KINDS and weight.scale != 1
    plain = isinstance(form, TileLayout) and not form.scaled
    return f"pack/type={'F32' if scaled else tensor.type}{',scaled=0' if plain else ''}"


def rows_are_uniform(tensor: Tensor) -> bool:
    """Whether every row of a ternary tensor has a single scale, as where one was found for the whole matrix.
    Blocks of nothing but zeros may have the scale 0."""
    if isinstance(tensor, LazyTensor):
        return True  # made with the scale 1
    zeros = _ZEROS[tensor.type]
    blocks = tensor.data.reshape(len(tensor.data), -1, len(zeros) + 2)
    for first in range(0, len(blocks), _ROWS_AT_ONCE):
        part = blocks[first : first + _ROWS_AT_ONCE]
        scales = np.ascontiguousarray(part[..., -2:]).view(np.uint16)[..., 0]
        largest = scales.max(axis=1, keepdims=True)  # of positive halves, as of their bits
        codes = part[..., :-2]
        if tensor.type == "TQ2_0" and (codes & (codes >> 1) & 0x55).any():
            return False  # the code 3, which is no trit
        empty = (scales == 0) & (codes == zeros).all(-1)
        if not ((scales == largest) | empty).all() or largest.max() > _LARGEST_HALF:
            return False
    return True


def vector_values(tensor: Tensor, weight: Weight) -> np.ndarray:
    """float32 values of a norm or bias."""
    return tensor.dequantize(slice(*weight.rows) if weight.rows else None).reshape(-1)


def pack_tiles(
    tensor: Tensor, weight: Weight, packed: Packed, tiles: range, area: np.ndarray, kernels: Mapping[str, int]
) -> None:
    """The given tiles of a weight into `area`, uint8 (tiles, stride). Releases the source's pages.

    kernels: the addresses of at least pack_kernel(tensor, weight, packed.form).
    """
    if packed.form == VECTOR:
        area.reshape(-1)[: 4 * packed.k] = vector_values(tensor, weight).view(np.uint8)
        return
    first = weight.rows[0] if weight.rows else 0
    each = ROWS if isinstance(packed.form, str) else packed.form.rows
    rows = slice(first + tiles.start * each, first + min(tiles.stop * each, packed.n))
    data, type_name = np.ascontiguousarray(tensor.data[rows]), tensor.type
    if tensor.type in FLOAT_KINDS and weight.scale != 1:
        values = tensor.dequantize(rows) * np.float32(weight.scale)
        data, type_name = values.view(np.uint8), "F32"
    scratch = aligned(pack_scratch_bytes(type_name, packed.k), np.uint8)
    args = record(
        Pack, SOURCE=address(data), SOURCE_STRIDE=data.strides[0], N=data.shape[0], K=packed.k,
        WEIGHT=address(area), TILE_STRIDE=packed.stride, TILES=len(area), SCRATCH=address(scratch),
        FACTOR=float(weight.scale),
    )  # fmt: skip
    call_kernel(kernels[pack_kernel(tensor, weight, packed.form)], address(args))
    if not isinstance(tensor, LazyTensor):
        release_pages(tensor.data[rows])  # the packed copy serves from here on

"""What a weight is packed into, and the packing of some of its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor
from edgellm.kernels.codes import CODE_FORMS, pack_scratch_bytes
from edgellm.kernels.layout import ROWS, Pack, TileLayout, align, record
from edgellm.kernels.memory import address, aligned, release_pages
from edgellm.kernels.team import call_kernel
from edgellm.program.ops import Weight

FLOAT_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
VECTOR = "vector"  # norms and biases: float32, as they are
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


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
    if type_name in CODE_FORMS:
        return CODE_FORMS[type_name].layout(k)
    raise EdgeError(f"Tensor type {type_name} cannot be run by the native executor.")


def kernel_form(form: TileLayout | str) -> str:
    """Parameters of the kernel for a form: "kind=f16" or "bits=4,asym=1,block=32"."""
    if isinstance(form, TileLayout):
        return f"bits={form.bits},asym={int(form.asym)},block={form.block}"
    return f"kind={form}"


def pack_kernel(tensor: Tensor, weight: Weight) -> str:
    """Name of the kernel that packs a matrix."""
    scaled = tensor.type in FLOAT_KINDS and weight.scale != 1
    return f"pack/type={'F32' if scaled else tensor.type}"


def vector_values(tensor: Tensor, weight: Weight) -> np.ndarray:
    """float32 values of a norm or bias."""
    return tensor.dequantize(slice(*weight.rows) if weight.rows else None).reshape(-1)


def pack_tiles(
    tensor: Tensor, weight: Weight, packed: Packed, tiles: range, area: np.ndarray, kernels: Mapping[str, int]
) -> None:
    """The given tiles of a weight into `area`, uint8 (tiles, stride). Releases the source's pages.

    kernels: the addresses of at least pack_kernel(tensor, weight).
    """
    if packed.form == VECTOR:
        area.reshape(-1)[: 4 * packed.k] = vector_values(tensor, weight).view(np.uint8)
        return
    first = weight.rows[0] if weight.rows else 0
    rows = slice(first + tiles.start * ROWS, first + min(tiles.stop * ROWS, packed.n))
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
    call_kernel(kernels[pack_kernel(tensor, weight)], address(args))
    if not isinstance(tensor, LazyTensor):
        release_pages(tensor.data[rows])  # the packed copy serves from here on

"""Packs a checkpoint's weights into the kernels' layout, once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.native.codes import QUANTIZED_TYPES, Codes, code_form, decode_codes
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.layout import ROW_SCALES, ROWS, Pack, TileLayout, align, record
from edgellm.kernels.memory import address, memory_limit, release_pages, reserve
from edgellm.kernels.team import call_kernel
from edgellm.program.ops import Weight

FLOAT_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Packed:
    """A packed weight of n rows and k inputs. form: a TileLayout, or the name of a float type."""

    address: int
    n: int
    k: int
    form: TileLayout | str
    zero_shift: int
    nbytes: int

    @property
    def tiles(self) -> int:
        return -(-self.n // ROWS)

    @property
    def stride(self) -> int:
        return tile_stride(self.form, self.k)


def tile_stride(form: TileLayout | str, k: int) -> int:
    return form.stride if isinstance(form, TileLayout) else align(k * ROWS * _FLOAT_BYTES[form])


def form_of(type_name: str, k: int) -> TileLayout | str:
    """The layout that a tensor type is packed into. Raises EdgeError for a type without one."""
    if type_name in FLOAT_KINDS:
        return FLOAT_KINDS[type_name]
    if type_name in QUANTIZED_TYPES:
        bits, asym, block = code_form(type_name)
        return TileLayout(k, bits, asym, block)
    raise EdgeError(f"Tensor type {type_name} cannot be run by the native executor.")


def kernel_form(form: TileLayout | str) -> str:
    """Parameters of the kernel for a form: "kind=f16" or "bits=4,asym=1,block=32"."""
    if isinstance(form, TileLayout):
        return f"bits={form.bits},asym={int(form.asym)},block={form.block}"
    return f"kind={form}"


def pack_kernel(form: TileLayout) -> str:
    return f"pack/{kernel_form(form)}"


def pack_codes(kernel: int, codes: np.ndarray, to: int, form: TileLayout, tiles: int) -> None:
    """(n, k) uint8 codes into the tiles at address `to`, by the kernel at that address."""
    codes = np.ascontiguousarray(codes)
    args = record(
        Pack, SOURCE=address(codes), N=codes.shape[0], K=codes.shape[1], WEIGHT=to,
        TILE_STRIDE=form.stride, TILES=tiles,
    )  # fmt: skip
    call_kernel(kernel, address(args))


class WeightStore:
    """All linear and embedding weights in one arena of huge pages."""

    def __init__(self, checkpoint: Checkpoint, weights: Iterable[Weight]):
        self._checkpoint = checkpoint
        self._packed: dict[Weight, Packed] = {}
        plan: list[tuple[Weight, int, TileLayout | str, int]] = []
        total = 0
        for weight in dict.fromkeys(weights):
            tensor = checkpoint.tensors[weight.name]
            if len(tensor.shape) != 2:
                raise EdgeError(f"{checkpoint.path}: tensor {weight.name} must have two dimensions.")
            n = tensor.shape[0] if weight.rows is None else weight.rows[1] - weight.rows[0]
            form = form_of(tensor.type, tensor.shape[1])
            if weight.scale != 1 and isinstance(form, str):
                form = "f32"  # a scaled float16 would be rounded again
            plan.append((weight, n, form, total))
            total += align(-(-n // ROWS) * tile_stride(form, tensor.shape[1]))
        limit = memory_limit()
        if limit is not None and total > limit:
            raise EdgeError(
                f"{checkpoint.path}: its weights take {total / 2**30:.1f} GiB in memory, which has "
                f"{limit / 2**30:.1f} GiB; choose a smaller quantisation."
            )
        # Kernels prefetch a little beyond the last tile.
        self._arena = reserve(total + 4096, huge_pages=True, what="the packed weights")
        self._plan = plan
        self.nbytes = total

    @property
    def forms(self) -> dict[Weight, TileLayout | str]:
        """The layout of every weight; known before anything is packed."""
        return {weight: form for weight, _, form, _ in self._plan}

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that `pack` needs."""
        return sorted({pack_kernel(f) for f in self.forms.values() if isinstance(f, TileLayout)})

    def pack(
        self, kernels: Mapping[str, int], threads: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Fill the arena. kernels: addresses by name. progress(bytes done, bytes in all)."""
        done = 0
        with ThreadPoolExecutor(threads) as pool:
            for packed_bytes in pool.map(lambda item: self._pack_one(item, kernels), self._plan):
                done += packed_bytes
                if progress:
                    progress(done, self.nbytes)

    def __getitem__(self, weight: Weight) -> Packed:
        return self._packed[weight]

    def _pack_one(self, item: tuple[Weight, int, TileLayout | str, int], kernels: Mapping[str, int]) -> int:
        weight, n, form, offset = item
        tensor = self._checkpoint.tensors[weight.name]
        k = tensor.shape[1]
        stride = tile_stride(form, k)
        tiles = -(-n // ROWS)
        area = self._arena[offset : offset + tiles * stride].reshape(tiles, stride)
        rows = slice(*weight.rows) if weight.rows else slice(None)
        shift = 0
        if isinstance(form, TileLayout):
            codes = decode_codes(tensor.data[rows], tensor.type)
            _store_scales(codes, form, area, weight.scale)
            pack_codes(kernels[pack_kernel(form)], codes.q, address(area), form, tiles)
            shift = codes.zero_shift
        else:
            dtype = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}[form]
            if weight.scale == 1:
                values = np.ascontiguousarray(tensor.data[rows]).view(dtype)
            else:
                values = (tensor.dequantize(rows) * np.float32(weight.scale)).view(dtype)
            _store_floats(values, area, dtype)
        release_pages(tensor.data[rows])  # the packed copy serves from here on
        self._packed[weight] = Packed(address(area), n, k, form, shift, tiles * stride)
        return tiles * stride


def _by_tile(values: np.ndarray, tiles: int) -> np.ndarray:
    """(n, columns) to (tiles, columns, 16), rows beyond n zero."""
    n, columns = values.shape
    if n < tiles * ROWS:
        values = np.concatenate([values, np.zeros((tiles * ROWS - n, columns), values.dtype)])
    return values.reshape(tiles, ROWS, columns).transpose(0, 2, 1)


def _store_floats(values: np.ndarray, area: np.ndarray, item: type) -> None:
    k = values.shape[1]
    width = np.dtype(item).itemsize
    out = np.ndarray(
        (area.shape[0], k, ROWS), item, area.data, strides=(area.strides[0], ROWS * width, width)
    )
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

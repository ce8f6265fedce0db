"""Packed bytes, read by the layout's description with NumPy, against gguf's dequantisers; and unpack()."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.executors.native.packing import VECTOR, Packed, form_of, pack_kernel, pack_tiles
from edgellm.formats.tensor import Tensor
from edgellm.formats.types import TENSOR_TYPES
from edgellm.kernels.codes import CODE_FORMS
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import TileLayout
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target
from edgellm.kernels.unpack import unpack
from edgellm.program.ops import Weight
from tests.kernels.probe import probe
from tests.kernels.test_linear import random_tensor

WHOLE = Weight("w")


def pack(tensor: Tensor, target: Target, weight: Weight = WHOLE) -> tuple[Packed, np.ndarray]:
    """The tiles of a whole tensor, (tiles, stride), over memory that held something else before."""
    n = tensor.shape[0] if weight.rows is None else weight.rows[1] - weight.rows[0]
    form = "f32" if weight.scale != 1 and tensor.type == "F16" else form_of(tensor.type, tensor.shape[1])
    packed = Packed(0, n, tensor.shape[1], form)
    area = aligned(packed.nbytes, np.uint8).reshape(packed.tiles, packed.stride)
    area[:] = 0xA5
    kernels = load_kernels([pack_kernel(tensor, weight, form)], target)
    for tile in range(packed.tiles):
        pack_tiles(tensor, weight, packed, range(tile, tile + 1), area[tile : tile + 1], kernels)
    return packed, area


def places_of_planes(form: TileLayout) -> list[tuple[int, int, int]]:
    """(bits, shift, first byte in a strip) of each plane: the high bits come first, and 2 bytes of 16 rows
    make a bit of an input."""
    found, at = [], 0
    for bits in (1, 2, 4, 8):
        if form.bits & bits:
            lower = sum(b for b in (2, 4, 8) if b > bits and form.bits & b)
            found.append((bits, lower, at))
            at += 2 * bits * form.strip
    assert at == 2 * form.bits * form.strip
    return found


def read_tiles(area: np.ndarray, form: TileLayout, zero_shift: int) -> np.ndarray:
    """float32 (16 tiles, k) of packed tiles: the description in TileLayout, word by word."""
    tiles = len(area)
    row_scale = area[:, :64].copy().view(np.float32)
    groups = area[:, 64:].reshape(tiles, form.groups, form.group_stride)
    line = groups[..., :64].copy().view(np.float16).reshape(tiles, form.groups, 2, 16).astype(np.float32)
    inputs = form.group * form.block
    codes = np.zeros((tiles, form.groups, inputs, 16), np.int32)
    for bits, shift, at in places_of_planes(form):
        for i in range(inputs):
            strip, place = divmod(i, form.strip)
            unit, place = divmod(place, 32 // bits)
            begin = 64 + 2 * form.bits * form.strip * strip + at + 64 * unit
            bytes_of_rows = groups[..., begin + i % 4 : begin + 64 : 4].astype(np.int32)
            codes[:, :, i] |= ((bytes_of_rows >> (bits * (place // 4))) & (2**bits - 1)) << shift
    codes = codes.reshape(tiles, form.groups, form.group, form.block, 16)
    if form.asym:
        values = codes * line[:, :, :1, None] + line[:, :, 1:, None]
    else:
        values = (codes - 2**zero_shift) * line[:, :, :, None]
    values = values.reshape(tiles, form.groups * inputs, 16)[:, : form.k] * row_scale[:, None]
    return values.transpose(0, 2, 1).reshape(tiles * 16, form.k)


@pytest.mark.parametrize("type_name", sorted(CODE_FORMS))
def test_packed_weights_have_the_values_of_the_file(target: Target, type_name: str) -> None:
    for k in (96, 64) if TENSOR_TYPES[type_name].block == 32 else (256, 512):
        tensor = random_tensor(type_name, 37, k, seed=k)
        packed, area = pack(tensor, target)
        assert isinstance(packed.form, TileLayout)
        values = read_tiles(area, packed.form, CODE_FORMS[type_name].zero_shift)
        expected = tensor.dequantize()
        exact = CODE_FORMS[type_name].half_scales
        largest = np.abs(expected).max()
        np.testing.assert_allclose(values[:37], expected, atol=largest * (3e-7 if exact else 2.0**-10))
        assert not values[37:].any()  # padding


@pytest.mark.parametrize("type_name", sorted(CODE_FORMS))
def test_form_agrees_with_the_file_format(type_name: str) -> None:
    form, stored = CODE_FORMS[type_name], TENSOR_TYPES[type_name]
    assert (form.elements, form.nbytes) == (stored.block, stored.nbytes)
    assert form.elements % form.block == 0
    layout = form.layout(stored.block)
    assert [plane.bits for plane in layout.planes] == [b for b in (8, 4, 2, 1) if layout.bits & b]
    assert layout.group_stride % 64 == 0


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "F16"])
def test_scaled_rows_of_a_weight(target: Target, type_name: str) -> None:
    tensor = random_tensor(type_name, 64, 256)
    weight = Weight("w", (16, 40), 3.0)
    packed, area = pack(tensor, target, weight)
    expected = 3 * tensor.dequantize(slice(16, 40))
    if isinstance(packed.form, TileLayout):
        values = read_tiles(area, packed.form, CODE_FORMS[type_name].zero_shift)
    else:
        values = area.view(np.float32).reshape(2, 256, 16).transpose(0, 2, 1).reshape(32, 256)
    np.testing.assert_allclose(values[:24], expected, atol=2.0**-10 * np.abs(expected).max())
    assert not values[24:].any()


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_floats_are_moved_bit_by_bit(target: Target, type_name: str) -> None:
    tensor = random_tensor(type_name, 21, 70)
    _, area = pack(tensor, target)
    item = np.uint32 if type_name == "F32" else np.uint16
    bits = area.view(item)[:, : 70 * 16].reshape(2, 70, 16).transpose(0, 2, 1).reshape(32, 70)
    np.testing.assert_array_equal(bits[:21], tensor.data.view(item))
    assert not bits[21:].any()


def test_vector_becomes_float32() -> None:
    tensor = random_tensor("BF16", 1, 70)
    area = np.zeros((1, 320), np.uint8)
    pack_tiles(tensor, Weight("w"), Packed(0, 1, 70, VECTOR), range(1), area, {})
    np.testing.assert_array_equal(area[0, :280].view(np.float32), tensor.dequantize()[0])


FORMS = sorted({form[:3] for form in CODE_FORMS.values()} | {(5, True, 32), (3, False, 32), (8, True, 16)})


@pytest.mark.parametrize(("bits", "asym", "block"), FORMS)
def test_unpack_finds_the_codes_of_every_block(target: Target, bits: int, asym: bool, block: int) -> None:
    form = TileLayout(0, bits, asym, block)
    inputs = form.group * block
    codes = np.random.default_rng(bits).integers(0, 2**bits, (inputs, 16), dtype=np.uint8)
    group = aligned(form.group_stride - 64, np.uint8)
    for plane_bits, shift, at in places_of_planes(form):
        for i in range(inputs):
            strip, place = divmod(i, form.strip)
            unit, place = divmod(place, 32 // plane_bits)
            begin = 2 * bits * form.strip * strip + at + 64 * unit
            part = (codes[i].astype(np.int32) >> shift) & (2**plane_bits - 1)
            group[begin + i % 4 : begin + 64 : 4] |= (part << (plane_bits * (place // 4))).astype(np.uint8)
    out = aligned(inputs * 16, np.uint8)

    def emit(e: Any, x: Any, y: Any, to: Any) -> None:
        vectors = [vector for j in range(form.group) for vector in unpack(e, x, form, j)]
        for v, vector in enumerate(vectors):
            e.store(vector, e.offset(to, 64 * v), 64)

    probe(target, emit)(group, group, out)
    np.testing.assert_array_equal(out.reshape(-1, 16, 4).transpose(0, 2, 1).reshape(inputs, 16), codes)
    assert address(out) % 64 == 0

"""Tensor types against llama.cpp's C code, the gguf package's quantisers and blocks computed by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from edgellm.errors import EdgeError
from edgellm.formats.types import TENSOR_TYPES, dequantize, row_bytes

QUANTISED = [name for name, kind in TENSOR_TYPES.items() if kind.block > 1]
PLAIN = {"F64": "f8", "F32": "f4", "F16": "f2", "I8": "i1", "I16": "i2", "I32": "i4"}


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_block_sizes_are_ggmls(name: str) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (
        TENSOR_TYPES[name].block,
        TENSOR_TYPES[name].nbytes,
    )


@pytest.mark.parametrize("name", QUANTISED)
def test_values_are_those_of_llama_cpp(name: str) -> None:
    """dequantized.npz was made by llama.cpp's dequantize_row_* (make_dequantized.py beside it)."""
    golden = np.load(Path(__file__).parent / "data" / "dequantized.npz")
    assert len(golden[name]) == 8
    np.testing.assert_array_equal(dequantize(golden[name], name), golden[f"{name}_values"])


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"])
def test_quantised_numbers_come_back_within_half_a_step(name: str) -> None:
    numbers = np.random.default_rng(3).uniform(-1, 1, (3, 5, 512)).astype(np.float32)
    step = {"Q8_0": 2 / 254, "Q5_0": 2 / 31, "Q5_1": 2 / 31, "Q4_0": 2 / 15, "Q4_1": 2 / 15}.get(name, 1.0)
    values = dequantize(quantize(numbers, GGMLQuantizationType[name]), name)
    assert values.shape == numbers.shape
    assert values.dtype == np.float32
    # half a step, and a whole one at the end that the asymmetric codes of Q4_0 and Q5_0 cut off
    assert np.abs(values - numbers).max() <= step * (1.1 if name in ("Q4_0", "Q5_0") else 0.55)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_types_are_converted(name: str) -> None:
    numbers = np.array([[0, 1, -3], [100, -128, 127]], PLAIN[name])
    values = dequantize(numbers.view(np.uint8), name)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, numbers.astype(np.float32))


def test_bf16_is_the_upper_half_of_float32() -> None:
    bits = np.array([0x3F80, 0xC040, 0x0001, 0x7F80], "<u2")
    values = dequantize(bits.view(np.uint8), "BF16")
    np.testing.assert_array_equal(values, np.array([1.0, -3.0, 2.0**-133, np.inf], np.float32))


def test_q4_1_block_by_hand() -> None:
    """w = d q + m; the low nibbles are the first 16 weights, the high ones the other 16."""
    block = struct.pack("<ee", 0.5, -2.0) + bytes(range(0x30, 0x40))
    values = dequantize(np.frombuffer(block, np.uint8)[None], "Q4_1")[0]
    np.testing.assert_array_equal(values[:16], 0.5 * np.arange(16) - 2)
    np.testing.assert_array_equal(values[16:], np.full(16, 0.5 * 3 - 2))


def test_q8_0_block_by_hand() -> None:
    block = struct.pack("<e32b", 0.25, *range(-16, 16))
    np.testing.assert_array_equal(
        dequantize(np.frombuffer(block, np.uint8)[None], "Q8_0")[0], 0.25 * np.arange(-16, 16)
    )


def test_tq2_0_block_by_hand() -> None:
    """Bits 2n of byte 32 h + m are element 128 h + 32 n + m, plus one; the float16 scale comes last."""
    codes = np.ones(256, np.uint8)
    codes[[0, 33, 255]] = [2, 0, 2]  # +1, -1, +1
    packed = bytearray([0b01010101] * 64)
    packed[0] = 0b01010110  # element 0
    packed[1] = 0b01010001  # element 33 = 32 * 1 + 1
    packed[63] = 0b10010101  # element 255 = 128 + 32 * 3 + 31
    block = bytes(packed) + struct.pack("<e", 1.5)
    values = dequantize(np.frombuffer(block, np.uint8)[None], "TQ2_0")[0]
    np.testing.assert_array_equal(values, 1.5 * (codes.astype(np.float32) - 1))


@pytest.mark.parametrize("name", ["F32", "BF16", "Q6_K"])
def test_result_may_be_written_and_input_stays(name: str) -> None:
    raw = np.zeros((2, TENSOR_TYPES[name].nbytes), np.uint8)
    raw.flags.writeable = False
    dequantize(raw, name)[:] = 1
    assert not raw.any()


@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_0"])
def test_no_rows_give_no_rows(name: str) -> None:
    kind = TENSOR_TYPES[name]
    assert dequantize(np.zeros((0, 3 * kind.nbytes), np.uint8), name).shape == (0, 3 * kind.block)


def test_errors() -> None:
    with pytest.raises(EdgeError, match="Tensor type IQ2_XXS is not supported; use one of F64, F32"):
        dequantize(np.zeros(66, np.uint8), "IQ2_XXS")
    with pytest.raises(EdgeError, match="A row of 19 bytes is not a multiple of the Q4_0 block of 18"):
        dequantize(np.zeros(19, np.uint8), "Q4_0")
    with pytest.raises(EdgeError, match="A row of 100 elements is not a multiple of the Q6_K block of 256"):
        row_bytes("Q6_K", 100)
    assert row_bytes("Q4_K", 512) == 288

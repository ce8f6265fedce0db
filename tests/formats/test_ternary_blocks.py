"""Ternary blocks against the gguf package's."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from edgellm.formats.ternary_blocks import TERNARY_TYPES, pack_blocks, unpack_blocks


@pytest.mark.parametrize("kind", TERNARY_TYPES)
def test_blocks_are_those_of_the_gguf_package(kind: str) -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(-1, 2, (9, 1024)).astype(np.int8)
    scales = rng.uniform(0.01, 3, (9, 4)).astype(np.float16)
    floats = (values.reshape(9, 4, 256) * scales[..., None].astype(np.float32)).reshape(9, 1024)
    data = pack_blocks((values + 1).astype(np.uint8), scales, kind)
    np.testing.assert_array_equal(data, quantize(floats, GGMLQuantizationType[kind]))
    codes, halves = unpack_blocks(data, kind)
    np.testing.assert_array_equal(codes, values + 1)
    np.testing.assert_array_equal(halves, scales)


def test_every_byte_of_tq1_0_is_decoded_as_ggml_does() -> None:
    """Also the 13 bytes that no packer writes."""
    blocks = np.resize(np.arange(256, dtype=np.uint8), (256, 54))
    blocks[:, -2:] = np.array([1], "<f2").view(np.uint8)
    codes, _ = unpack_blocks(blocks, "TQ1_0")
    np.testing.assert_array_equal(codes - 1.0, dequantize(blocks, GGMLQuantizationType["TQ1_0"]))


def test_the_code_3_is_no_trit() -> None:
    with pytest.raises(ValueError, match="code 3"):
        unpack_blocks(np.full((1, 66), 0xFF, np.uint8), "TQ2_0")

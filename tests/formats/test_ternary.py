"""Ternary BitNet weights: unpacked and rounded exactly, presented as TQ2_0 with a factor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.hf import open_hf
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import round_to_ternary, unpack_ternary
from tests.formats.tiny import hf_name, tensor_shapes

HERE = Path("model")
OFFLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = OFFLINE | {"quantization_mode": "online"}


def tensor(name: str, kind: str, array: np.ndarray) -> Tensor:
    return Tensor(name, kind, array.shape, array.view(np.uint8).reshape(*array.shape[:-1], -1))


def pack(trits: np.ndarray) -> np.ndarray:
    """Row by row, from the description in the docstring of transformers' pack_weights."""
    quarter = trits.shape[0] // 4
    packed = np.zeros((quarter, trits.shape[1]), np.uint8)
    for row in range(trits.shape[0]):
        packed[row % quarter] |= (trits[row] + 1).astype(np.uint8) << (2 * (row // quarter))
    return packed


def one(scale: float) -> Tensor:
    return tensor("s", "F32", np.array([scale], np.float32))


def test_the_example_of_transformers() -> None:
    """unpack_weights' docstring shows these bytes and what is in them."""
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    parts = unpack_ternary(HERE, "blk.0.attn_q", tensor("w", "U8", packed), one(0.5), inverted=False)
    assert parts["blk.0.attn_q.weight"].dequantize().tolist() == [
        [0, -1],
        [-1, 1],
        [-1, 1],
        [-1, 1],
        [1, 0],
        [0, -1],
        [1, -1],
        [1, -1],
    ]
    assert parts["blk.0.attn_q.scale"].dequantize().tolist() == [0.5]


def test_whole_blocks_become_tq2_0() -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (12, 512)).astype(np.int8)
    parts = unpack_ternary(HERE, "x", tensor("w", "U8", pack(trits)), one(4.0), inverted=True)
    weight = parts["x.weight"]
    assert (weight.type, weight.shape, weight.nbytes) == ("TQ2_0", (12, 512), 12 * 2 * 66)
    assert weight.data.nbytes == weight.nbytes
    assert not weight.data.flags.writeable
    np.testing.assert_array_equal(weight.dequantize(), trits)
    np.testing.assert_array_equal(weight.dequantize(slice(5, 7)), trits[5:7])
    assert parts["x.scale"].dequantize().tolist() == [0.25]  # the file holds 1 / factor


def test_nothing_is_decoded_before_it_is_used() -> None:
    packed = tensor("w", "U8", np.full((4, 256), 0xFF, np.uint8))  # code 3 does not exist
    weight = unpack_ternary(HERE, "x", packed, one(1.0), inverted=False)["x.weight"]
    assert (weight.shape, weight.elements) == (((16, 256)), 16 * 256)
    with pytest.raises(EdgeError, match="model: the tensor w holds values other than -1, 0 and 1"):
        _ = weight.data


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_impossible_factor(value: float) -> None:
    packed = tensor("w", "U8", np.zeros((4, 256), np.uint8))
    scale = unpack_ternary(HERE, "x", packed, one(value), inverted=True)["x.scale"]
    with pytest.raises(EdgeError, match="the tensor s should hold one positive number"):
        _ = scale.data


@pytest.mark.parametrize("columns", [256, 96])
def test_master_weights_are_rounded_as_the_model_rounds_them(columns: int) -> None:
    """BitNet b1.58, equations 1 to 3: gamma = mean |W|; round and clip W / gamma."""
    weights = np.random.default_rng(1).normal(size=(600, columns)).astype(np.float32)
    parts = round_to_ternary(HERE, "x", tensor("w", "F32", weights))
    gamma = np.abs(weights.astype(np.float64)).mean()
    assert parts["x.weight"].type == ("TQ2_0" if columns == 256 else "F32")
    np.testing.assert_array_equal(parts["x.weight"].dequantize(), np.clip(np.rint(weights / gamma), -1, 1))
    assert parts["x.scale"].dequantize()[0] == pytest.approx(gamma, rel=1e-6)


def test_factor_of_bf16_master_weights_is_a_bf16_number() -> None:
    bits = (np.random.default_rng(1).normal(size=(8, 256)).astype(np.float32).view(np.uint32) >> 16).astype(
        "<u2"
    )
    scale = round_to_ternary(HERE, "x", tensor("w", "BF16", bits))["x.scale"].dequantize()
    gamma = np.abs((bits.astype(np.uint32) << 16).view(np.float32)).mean(dtype=np.float64)
    assert scale.view(np.uint32)[0] & 0xFFFF == 0
    assert scale[0] == pytest.approx(gamma, rel=2.0**-9)  # half a unit in the last of 8 bits


def bitnet_tensors(packed: bool) -> dict[str, np.ndarray]:
    """Packed matrices and factors under Hugging Face names, or ternary numbers in float32."""
    rng = np.random.default_rng(3)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes("bitnet").items():
        original = hf_name("bitnet", name)
        if original.endswith("_proj.weight"):
            trits = rng.integers(-1, 2, shape)
            tensors[original] = pack(trits) if packed else trits.astype(np.float32)
            if packed:
                tensors[original + "_scale"] = np.array([2.0], np.float32)
    return tensors


@pytest.mark.parametrize(("kind", "factor"), [("autobitlinear", 2.0), ("bitlinear", 0.5)])
def test_packed_folder(write_hf: Callable[..., Path], kind: str, factor: float) -> None:
    quantization = OFFLINE | {"linear_class": kind}
    folder = write_hf("bitnet", {"quantization_config": quantization}, bitnet_tensors(packed=True))
    checkpoint = open_hf(folder)
    assert checkpoint.config.extra["quantization"] == quantization
    expected = bitnet_tensors(packed=False)
    for name in tensor_shapes("bitnet"):
        original = hf_name("bitnet", name)
        if original in expected:
            np.testing.assert_array_equal(checkpoint.tensors[name].dequantize(), expected[original])
            scale = checkpoint.tensors[name.replace(".weight", ".scale")]
            assert (scale.shape, scale.dequantize().tolist()) == ((1,), [factor])


def test_master_folder(write_hf: Callable[..., Path]) -> None:
    checkpoint = open_hf(write_hf("bitnet", {"quantization_config": ONLINE}))
    weight = checkpoint.tensors["blk.1.ffn_down.weight"].dequantize()
    assert set(np.unique(weight)) == {-1.0, 0.0, 1.0}
    assert checkpoint.tensors["blk.1.ffn_down.scale"].dequantize()[0] == pytest.approx(0.8, abs=0.05)
    assert checkpoint.tensors["token_embd.weight"].type == "F32"
    assert "token_embd.scale" not in checkpoint.tensors


@pytest.mark.parametrize(
    ("quantization", "tensors", "sentence"),
    [
        ({"quant_method": "awq"}, {}, "names the method 'awq'; use a GGUF file of the model"),
        (OFFLINE | {"use_rms_norm": True}, {}, "norms inside of the linears"),
        (OFFLINE | {"linear_class": "other"}, {}, "a linear_class other than"),
        (OFFLINE | {"quantization_mode": "never"}, {}, "a quantization_mode other than"),
        (OFFLINE | {"modules_to_not_convert": ["model.layers.0"]}, {}, "leaves some of the linears"),
        (OFFLINE, {"model.layers.0.mlp.up_proj.weight_scale": None}, "lacks its weight_scale"),
        (
            OFFLINE,
            {"model.layers.0.mlp.up_proj.weight": np.zeros((12, 32), np.uint8)},
            "has the shape (48, 32), which disagrees",
        ),
        (
            OFFLINE,
            {"model.layers.0.mlp.up_proj.weight": np.zeros(64, np.uint8)},
            "not rows and columns",
        ),
        (
            OFFLINE,
            {"model.layers.0.mlp.up_proj.weight": np.zeros((64, 32), np.int64)},
            "has the type I64, which is not supported",
        ),
        (None, {}, "has the type U8, which is not supported"),
    ],
)
def test_unsuitable_folders(
    write_hf: Callable[..., Path], quantization: Any, tensors: dict[str, Any], sentence: str
) -> None:
    folder = write_hf("bitnet", {"quantization_config": quantization}, bitnet_tensors(packed=True) | tensors)
    with pytest.raises(EdgeError) as caught:
        open_hf(folder)
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)

"""GGUF files of bitnet.cpp: exact trits and factors in all its layouts, and the same model as from TQ2_0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor
from edgellm.executors.native.packed_file import PackedFile
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.bitnet_cpp import BitnetOptions, unpack_bitnet
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.gguf import open_gguf
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor
from edgellm.models import build_program
from tests.formats.bitnet_encode import NAME, Tiling, encode, trits, write_config
from tests.formats.bitnet_model import FFN, HIDDEN, LINEARS, SCALE
from tests.formats.tiny import tensor_shapes

# The first three of TL1 and TL2 are cut as bitnet.cpp's presets cut bitnet_b1_58-large, but smaller.
CASES: list[tuple[str, int, int, Tiling | None]] = [
    *(
        (kind, *shape, None)
        for kind in ("i2_s-128", "i2_s-64", "i2_s-rows4")
        for shape in ((8, 256), (12, 384))
    ),
    ("i2_s-64", 3, 192, None),
    ("i2_s-rows4", 4, 96, None),
    ("tl1", 512, 256, (256, 128, 32)),
    ("tl1", 256, 192, (128, 64, 64)),
    ("tl1", 32, 64, (32, 8, 32)),
    ("tl2", 512, 512, (256, 96, 32)),
    ("tl2", 256, 384, (128, 192, 32)),  # triples alone
    ("tl2", 64, 320, (32, 96, 32)),
    ("tl2", 64, 352, (64, 96, 32)),  # 64 columns of pairs
]


def unpack(kind: str, raw: bytes, shape: tuple[int, int], config: Path | None = None) -> Mapping[str, Tensor]:
    tensor = Tensor(NAME, kind, shape, np.frombuffer(raw, np.uint8))
    return unpack_bitnet(Path("model.gguf"), {NAME: tensor}, BitnetOptions(config=config))[0]


@pytest.mark.parametrize(("kind", "rows", "columns", "tiling"), CASES)
def test_trits_and_factor_are_exact(
    kind: str, rows: int, columns: int, tiling: Tiling | None, tmp_path: Path
) -> None:
    weights = trits(rows, columns)
    config = write_config(tmp_path / "own.ini", {(rows, columns): tiling}) if tiling else None
    parts = unpack(kind, encode(kind, weights, 0.0371, tiling), (rows, columns), config)
    weight, scale = parts[NAME], parts["blk.0.attn_q.scale"]
    assert isinstance(weight, LazyTensor)
    assert weight.type == ("TQ2_0" if columns % 256 == 0 else "Q4_0")
    assert weight.shape == (rows, columns)
    assert weight.data.nbytes == weight.nbytes
    np.testing.assert_array_equal(weight.dequantize(), weights)
    np.testing.assert_array_equal(weight.dequantize(slice(1, 3)), weights[1:3])
    assert scale.dequantize().tolist() == [float(np.float32(0.0371))]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tiling_is_undone(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = data.draw(st.sampled_from(["tl1", "tl2"]))
    bmm = data.draw(st.sampled_from([32, 64])) if kind == "tl1" else 32
    bm = bmm * data.draw(st.integers(1, 3))
    bk = data.draw(st.integers(1, 4)) * (256 // bmm if kind == "tl1" else 96)
    rows = bm * data.draw(st.integers(1, 2))
    tiles = data.draw(st.integers(-(-256 // bk), -(-256 // bk) + 2))
    columns = bk * tiles + (0 if kind == "tl1" else data.draw(st.sampled_from([0, 32, 64])))
    weights = trits(rows, columns, data.draw(st.integers(0, 99)))
    config = tmp_path_factory.mktemp("config") / "kernel_config.ini"
    write_config(config, {(1, 1): (32, 8, 32), (rows, columns): (bm, bk, bmm)})
    parts = unpack(kind, encode(kind, weights, 1.0, (bm, bk, bmm)), (rows, columns), config)
    np.testing.assert_array_equal(parts[NAME].dequantize(), weights)


# Whole models


def logits(checkpoint: Checkpoint, native: bool) -> np.ndarray:
    program = build_program(checkpoint, context=32)
    tokens = np.random.default_rng(4).integers(0, program.vocab_size, 24)
    if not native:
        return ReferenceExecutor(program, checkpoint).new_session(32).forward(tokens, all_logits=True)
    executor = NativeExecutor(program, checkpoint, threads=2)
    result = executor.new_session(32).forward(tokens, all_logits=True)
    executor.close()
    return result


@pytest.mark.parametrize("native", [False, True])
def test_a_model_gives_the_logits_of_its_tq2_0_form(bitnet_model: Callable[..., Path], native: bool) -> None:
    expected = logits(open_gguf(bitnet_model("TQ2_0")), native)
    assert np.isfinite(expected).all()
    assert expected.std() > 0
    for kind in ("i2_s-128", "tl1", "tl2"):
        np.testing.assert_array_equal(logits(open_gguf(bitnet_model(kind)), native), expected)
    options = BitnetOptions({36: "i2_s-64"})
    np.testing.assert_array_equal(logits(open_gguf(bitnet_model("i2_s-64"), options), native), expected)


def test_narrow_matrices_are_q4_0_blocks_of_ggml() -> None:
    """Rows of 384 do not fill blocks of TQ2_0; the gguf package decodes what they become."""
    shape = (FFN, 384)
    parts = unpack("i2_s-128", encode("i2_s-128", trits(*shape), 0.5), shape)
    assert parts[NAME].type == "Q4_0"
    import gguf

    blocks = parts[NAME].data.reshape(FFN, -1)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(expected, trits(*shape))


def test_tensors_become_tq2_0_with_a_factor(
    bitnet_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_gguf(bitnet_model("i2_s-128"))
    weight, scale = checkpoint.tensors["blk.1.ffn_down.weight"], checkpoint.tensors["blk.1.ffn_down.scale"]
    assert (weight.type, weight.shape, scale.dequantize().tolist()) == ("TQ2_0", (HIDDEN, FFN), [SCALE])
    assert checkpoint.tensors["token_embd.weight"].type == "F32"
    assert checkpoint.assumptions == ("I2_S of bitnet.cpp is read in its layout i2_s-128",)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "set EDGELLM_BITNET_TYPES=36=i2_s-64" in caplog.text


def test_a_layout_that_is_asked_for_is_not_warned_of(
    bitnet_model: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_BITNET_TYPES", "36=I2_S")
    assert "i2_s-128" in open_gguf(bitnet_model("i2_s-128")).assumptions[0]
    monkeypatch.setenv("EDGELLM_BITNET_TYPES", "36=i2_s-rows4, 38=off")
    path = bitnet_model("i2_s-rows4")
    checkpoint = open_gguf(path)
    number = list(tensor_shapes("bitnet")).index("blk.0.ffn_up.weight")
    expected = trits(FFN, HIDDEN, seed=number)
    np.testing.assert_array_equal(checkpoint.tensors["blk.0.ffn_up.weight"].dequantize(), expected)
    assert not caplog.records


def test_packed_weights_are_kept_apart_by_layout(bitnet_model: Callable[..., Path]) -> None:
    path = bitnet_model("i2_s-128")
    headers = [
        PackedFile(open_gguf(path, BitnetOptions({36: kind})), [], 0).header
        for kind in ("i2_s-128", "i2_s-64")
    ]
    assert headers[0] != headers[1]


def test_kernel_config_belongs_to_the_files(bitnet_model: Callable[..., Path], tmp_path: Path) -> None:
    path = bitnet_model("tl1")
    beside = path.with_name("kernel_config.ini")
    assert [Path(file.path).name for file in open_gguf(path).files] == ["model.gguf", "kernel_config.ini"]
    preset = beside.rename(path.with_name("kernel_config_tl1.ini"))  # the name that the presets have
    assert str(preset) in open_gguf(path).assumptions[0]


def test_other_numbers_may_be_declared(bitnet_model: Callable[..., Path]) -> None:
    names = [f"blk.{layer}.{name}.weight" for layer in (0, 1) for name in LINEARS]
    path = bitnet_model("i2_s-128", types=dict.fromkeys(names, 40))
    checkpoint = open_gguf(path, BitnetOptions({40: "i2_s-128"}))
    assert checkpoint.tensors[names[0]].type == "TQ2_0"


@pytest.mark.parametrize("factor", [np.nan, np.inf, -1.0])
def test_impossible_factor(factor: float) -> None:
    parts = unpack("i2_s-128", encode("i2_s-128", trits(8, 256), factor), (8, 256))
    with pytest.raises(EdgeError, match="should be a positive number, not"):
        _ = parts["blk.0.attn_q.scale"].data

"""Files of bitnet.cpp that are damaged, ambiguous or lack their configuration: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.formats.bitnet_cpp import BitnetOptions
from edgellm.formats.gguf import open_gguf
from tests.formats.bitnet_encode import NAME, Tiling, encode, trits, write_config
from tests.formats.bitnet_model import HIDDEN, TILINGS, linear
from tests.formats.test_gguf_fuzz import EXTREMES, header_size, survives
from tests.formats.tiny import gguf_bytes

MXFP4 = 39


def refused(path: Path, sentence: str, options: BitnetOptions | None = None) -> None:
    with pytest.raises(EdgeError) as caught:
        open_gguf(path, options)
    assert sentence in str(caught.value)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("kind", ["i2_s-128", "tl1", "tl2"])
def test_truncated(bitnet_model: Callable[..., Path], kind: str) -> None:
    path = bitnet_model(kind)
    content = path.read_bytes()
    path.write_bytes(content[:-20_000])
    refused(path, "it is truncated or the shape is wrong")
    path.write_bytes(content[: content.index(b"blk.1.attn_q.weight")])
    refused(path, "truncated")


def test_truncated_within_the_last_matrix(tmp_path: Path) -> None:
    """The first one tells whose type it is."""
    room = 64 * 256 // 4 + 32
    infos = [(NAME, (256, 64), 36, 0), ("blk.0.attn_k.weight", (256, 64), 36, room)]
    path = tmp_path / "short.gguf"
    path.write_bytes(gguf_bytes([("general.architecture", "bitnet")], infos, bytes(2 * room - 40)))
    refused(path, "the tensor blk.0.attn_k.weight ends at byte")


def one_tensor(tmp_path: Path, number: int, shape: tuple[int, ...], room: int, behind: bool = True) -> Path:
    infos = [(NAME, shape[::-1], number, 0)]
    infos += [("blk.0.attn_norm.weight", (8,), 0, room)] if behind else []
    path = tmp_path / "one.gguf"
    path.write_bytes(gguf_bytes([("general.architecture", "bitnet")], infos, bytes(room + 32 * behind)))
    return path


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    ("number", "shape", "room", "sentence"),
    [
        (MXFP4, (64, 256), 64 * 256 // 32 * 17, "of type MXFP4, which is not supported"),
        (MXFP4, (2, 64, 256), 2 * 64 * 256 // 32 * 17, "of type MXFP4, which is not supported"),
        (36, (64, 256), 64 * 256 // 32 * 18, "of type IQ4_NL_4_4, which is not supported"),
        (38, (64, 256), 64 * 256 // 32 * 18, "of type IQ4_NL_8_8, which is not supported"),
        (36, (1, 64), 64, "I2_S in files of bitnet.cpp and IQ4_NL_4_4 in others, and its size fits both"),
        (36, (64, 256), 4096, "and its size fits neither"),
        (MXFP4, (64, 256), 4096, "TL2 in files of bitnet.cpp and MXFP4 in others, and its size fits neither"),
        (36, (3, 2**40), 4096, "and its size fits neither"),
        (36, (8, 192), 8 * 192 // 4 + 32, "has rows of 192, not a multiple of its block of 128"),
    ],
)
def test_numbers_that_mean_something_else(
    tmp_path: Path, number: int, shape: tuple[int, ...], room: int, sentence: str, behind: bool
) -> None:
    refused(one_tensor(tmp_path, number, shape, room, behind), sentence)


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        ({36: "off"}, "of type IQ4_NL_4_4, which is not supported"),
        ({36: "i2_s-rows4"}, "has 6 rows, not a multiple of 4"),
        ({36: "i2_s-64"}, "ends at byte"),
    ],
)
def test_declared_types_are_checked_too(tmp_path: Path, kinds: dict[int, str], sentence: str) -> None:
    refused(one_tensor(tmp_path, 36, (6, 256), 128, behind=False), sentence, BitnetOptions(kinds))


def test_no_guessing_on_demand(bitnet_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_BITNET_TYPES", "off")
    refused(bitnet_model("i2_s-128"), "of type IQ4_NL_4_4, which is not supported")


@pytest.mark.parametrize("wish", ["i2_s", "36", "36=i3", "x=tl1", "36=i2_s,", "-1=tl1", "９=tl1"])
def test_wishes_without_a_meaning(
    bitnet_model: Callable[..., Path], wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_BITNET_TYPES", wish)
    with pytest.raises(EdgeError, match="has no meaning; set it to auto"):
        open_gguf(bitnet_model("TQ2_0"))


def test_tensors_other_than_linears(bitnet_model: Callable[..., Path]) -> None:
    embedding = {"token_embd.weight": encode("i2_s-128", trits(40, HIDDEN), 1.0)}
    path = bitnet_model("i2_s-128", raw=embedding, types={"token_embd.weight": 36})
    refused(
        path, "token_embd.weight of shape (40, 256) is of bitnet.cpp's type I2_S, which edgellm reads for"
    )


def test_a_second_factor(bitnet_model: Callable[..., Path]) -> None:
    path = bitnet_model("i2_s-128", more={"blk.0.attn_q.scale": (1,)})
    refused(path, "blk.0.attn_q.scale exists beside the factor inside of blk.0.attn_q.weight")


def test_kernel_config_missing_or_of_another_model(
    bitnet_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bitnet_model("tl2")
    config = path.with_name("kernel_config.ini").rename(path.parent / "elsewhere.ini")
    refused(path, "put it beside the model or set EDGELLM_BITNET_CONFIG to its path")
    monkeypatch.setenv("EDGELLM_BITNET_CONFIG", str(config))
    assert open_gguf(path).tensors[NAME].dequantize().std() > 0
    monkeypatch.setenv("EDGELLM_BITNET_CONFIG", str(config) + "x")
    refused(path, "elsewhere.inix: the kernel configuration cannot be read (No such file or directory)")
    monkeypatch.delenv("EDGELLM_BITNET_CONFIG")
    write_config(path.with_name("kernel_config.ini"), {(256, 256): (128, 96, 32)})
    refused(path, "has the shape (128, 256), for which")


@pytest.mark.parametrize(
    ("kind", "tiling", "sentence"),
    [
        ("tl1", (128, 64, 16), "bmm = 16, but TL1 has pieces of 32 or 64 rows"),
        ("tl2", (128, 96, 64), "bmm = 64, but TL2 has pieces of 32 rows"),
        ("tl1", (96, 64, 32), "bm = 96, which has to be a multiple of bmm = 32 and to divide the 256 rows"),
        ("tl1", (0, 64, 32), "bm = 0, which"),
        ("tl1", (64, 96, 64), "bk = 96, which does not divide the 256 columns"),
        ("tl1", (64, 6, 64), "bk = 6, which has to be a multiple of 4"),
        ("tl2", (64, -24, 32), "bk = -24, which has to be a multiple of 24"),
        ("tl2", (64, 72, 32), "bk = 72, which leaves 40 of 256 columns, not a multiple of 32"),
    ],
)
def test_tilings_that_do_not_fit(
    bitnet_model: Callable[..., Path], kind: str, tiling: Tiling, sentence: str
) -> None:
    path = bitnet_model(kind)
    write_config(path.with_name("kernel_config.ini"), TILINGS[kind] | {(256, 256): tiling})
    refused(path, sentence)


@pytest.mark.parametrize(
    "text", [b"m = 1", b"[a]\nm = 256\n", b"[a]\nm=x\nk=1\nbm=1\nbk=1\nbmm=1\n", b"[a]\n[a]\n", b"\xff"]
)
def test_kernel_config_that_is_something_else(bitnet_model: Callable[..., Path], text: bytes) -> None:
    path = bitnet_model("tl1")
    path.with_name("kernel_config.ini").write_bytes(text)
    refused(path, "kernel_config.ini: th")


@pytest.mark.parametrize(
    ("kind", "byte", "sentence"),
    [
        ("i2_s-128", 0x03, "holds values other than -1, 0 and 1; the file is damaged"),
        ("tl1", 0x90, "holds a pair above 8; the file is damaged or kernel_config.ini is not the one"),
        ("tl2", 0x0E, "holds a triple above 13; the file is damaged or kernel_config.ini is not the one"),
        ("tl2", 0x00, "holds a negative zero; the file is damaged or kernel_config.ini is not the one"),
    ],
)
def test_damage_is_found_when_a_tensor_is_used(
    bitnet_model: Callable[..., Path], kind: str, byte: int, sentence: str
) -> None:
    content = bytearray(linear(kind, np.full((HIDDEN, HIDDEN), -1, np.int8))[0])
    content[0] = byte
    tensor = open_gguf(bitnet_model(kind, raw={NAME: bytes(content)})).tensors[NAME]
    with pytest.raises(EdgeError) as caught:
        _ = tensor.data
    assert f"the tensor {NAME} {sentence}" in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_of_the_header_may_change(bitnet_model: Callable[..., Path], data: st.DataObject) -> None:
    path = bitnet_model(data.draw(st.sampled_from(["i2_s-128", "tl1", "tl2"])))
    content = bytearray(path.read_bytes())
    end = header_size(bytes(content))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        width = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 2**64 - 1)))
        content[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    path.write_bytes(content)
    survives(path)

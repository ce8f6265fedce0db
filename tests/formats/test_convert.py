"""Conversion to GGUF: against the gguf package's blocks, hand-made trits and the reference executor."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.formats.convert import TYPES, Converted, convert
from edgellm.models import build_program
from tests.formats.tiny import HEADS, KV_HEADS, LAYERS, VOCAB, gguf_bytes, gguf_keys
from tests.formats.tiny_bitnet import (
    FFN,
    HIDDEN,
    LINEARS,
    MATRICES,
    NORMS,
    bfloat16,
    packed,
    trits,
    write_bitnet,
)

TERNARY = ("TQ1_0", "TQ2_0")
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
QUANTS = gguf.GGMLQuantizationType


def logits(checkpoint: Checkpoint) -> np.ndarray:
    program = build_program(checkpoint, context=len(TOKENS))
    return ReferenceExecutor(program, checkpoint).new_session(len(TOKENS)).forward(TOKENS, all_logits=True)


def converted(source: Path, out: Path, kind: str, **more: Any) -> Converted:
    return convert(open_checkpoint(source), out, kind, **more)


def read(path: Path) -> dict[str, np.ndarray]:
    """float32 tensors, by the gguf package alone."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
    }


def types(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


# ---- from a Hugging Face folder


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("form", ["packed", "master"])
def test_a_folders_logits_are_those_of_its_file(tmp_path: Path, form: str, kind: str) -> None:
    folder, out = write_bitnet(tmp_path / "model", form), tmp_path / "out.gguf"
    converted(folder, out, kind)
    np.testing.assert_array_equal(logits(open_checkpoint(out)), logits(open_checkpoint(folder)))
    assert {types(out)[f"{name}.weight"] for name in LINEARS} == {kind}


@pytest.mark.parametrize("kind", TERNARY)
def test_packed_weights_arrive_exactly(tmp_path: Path, kind: str) -> None:
    """The file says 1 / factor in bfloat16; the factor itself is no float16 and becomes a tensor."""
    out = tmp_path / "out.gguf"
    converted(write_bitnet(tmp_path / "model", scale=0.07), out, kind)
    found = read(out)
    inverse = (bfloat16(np.array([1 / 0.07]))[1].astype(np.uint32) << 16).view(np.float32)[0]
    for seed, name in enumerate(LINEARS):
        np.testing.assert_array_equal(found[f"{name}.weight"], trits(seed, MATRICES[name.split(".")[-1]]))
        assert found[f"{name}.scale"].tolist() == [np.float32(1) / inverse]


@pytest.mark.parametrize(
    ("scale", "inside"), [(2.0, True), (2.0**-20, True), (2.0**-30, False), (2.0**17, False)]
)
def test_a_factor_goes_into_the_blocks_where_a_half_holds_it(
    tmp_path: Path, scale: float, inside: bool
) -> None:
    out = tmp_path / "out.gguf"
    converted(write_bitnet(tmp_path / "model", scale=scale), out, "TQ2_0")
    found = read(out)
    name = LINEARS[3]
    assert (f"{name}.scale" not in found) == inside
    np.testing.assert_array_equal(
        found[f"{name}.weight"] * (1 if inside else found[f"{name}.scale"]),
        trits(3, MATRICES["attn_output"]) * scale,
    )


def test_undeclared_master_weights_are_rounded_by_their_mean(tmp_path: Path) -> None:
    """BitNet b1.58, equations 1 to 3; the factor is a bfloat16, as the weights are."""
    folder, out = write_bitnet(tmp_path / "model", "undeclared"), tmp_path / "out.gguf"
    assert converted(folder, out, "TQ1_0").rounded == len(LINEARS)
    source, found = open_checkpoint(folder), read(out)
    for name in LINEARS:
        weights = source.tensors[f"{name}.weight"].dequantize().astype(np.float64)
        mean = np.abs(weights).mean()
        np.testing.assert_array_equal(
            np.sign(found[f"{name}.weight"]), np.clip(np.rint(weights / mean), -1, 1)
        )
        assert np.abs(found[f"{name}.weight"]).max() == pytest.approx(mean, rel=2.0**-8)


def test_keys_of_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert converted(write_bitnet(tmp_path / "model"), out, "TQ2_0").architecture == "bitnet"
    fields = gguf.GGUFReader(out).fields
    found = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert found.pop("bitnet.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert found == {
        "general.architecture": "bitnet",
        "general.name": "model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_TQ2_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "bitnet.vocab_size": 40,
        "bitnet.context_length": 512,
        "bitnet.embedding_length": HIDDEN,
        "bitnet.block_count": 2,
        "bitnet.feed_forward_length": FFN,
        "bitnet.attention.head_count": 4,
        "bitnet.attention.head_count_kv": 2,
        "bitnet.attention.key_length": 64,
        "bitnet.attention.value_length": 64,
        "bitnet.rope.dimension_count": 64,
        "bitnet.rope.freq_base": 10000.0,
        "bitnet.rope.scaling.type": "linear",
        "bitnet.rope.scaling.factor": 1.0,
    }
    kinds = types(out)
    assert {kinds[f"blk.1.{norm}.weight"] for norm in NORMS} == {"F32"}  # bfloat16 in the folder
    assert kinds["token_embd.weight"] == "BF16"


def test_relu_squared_is_another_architecture(tmp_path: Path) -> None:
    folder, out = write_bitnet(tmp_path / "model", config={"hidden_act": "relu2"}), tmp_path / "out.gguf"
    assert converted(folder, out, "TQ2_0").architecture == "bitnet-b1.58"
    np.testing.assert_array_equal(logits(open_checkpoint(out)), logits(open_checkpoint(folder)))


# ---- from a GGUF file


def ternary_tensors(kind: str, scales: Callable[[int], float]) -> dict[str, Any]:
    """The linears of the tiny llama with 256 columns, each block with a scale of its own."""
    rng = np.random.default_rng(8)
    tensors: dict[str, Any] = {"token_embd.weight": rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)}
    tensors["output_norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    for seed, name in enumerate(LINEARS):
        rows, columns = MATRICES[name.split(".")[-1]]
        blocks = trits(seed, (rows, columns)).reshape(rows, -1, 256).astype(np.float32)
        for at in np.ndindex(*blocks.shape[:2]):
            blocks[at] *= scales(sum(at))
        values = blocks.reshape(rows, columns)
        tensors[f"{name}.weight"] = (gguf.quants.quantize(values, QUANTS[kind]), kind)
    return tensors


SIZES = {
    "embedding_length": HIDDEN,
    "feed_forward_length": FFN,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def block_scale(block: int) -> float:
    return float(np.float16(0.01 + 0.001 * (block % 7)))


@pytest.mark.parametrize("kind", TERNARY)
def test_there_and_back_again(write_gguf: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    other = TERNARY[1 - TERNARY.index(kind)]
    source = write_gguf("llama", SIZES, ternary_tensors(kind, block_scale))
    converted(source, tmp_path / "there.gguf", other)
    converted(tmp_path / "there.gguf", tmp_path / "back.gguf", kind)
    first, there, back = (
        gguf.GGUFReader(p) for p in (source, tmp_path / "there.gguf", tmp_path / "back.gguf")
    )
    for a, b, c in zip(first.tensors, there.tensors, back.tensors, strict=True):
        assert a.name == b.name == c.name
        np.testing.assert_array_equal(a.data, c.data)
        assert b.tensor_type.name == (
            other if a.name.removesuffix(".weight") in LINEARS else a.tensor_type.name
        )
    np.testing.assert_array_equal(
        logits(open_checkpoint(tmp_path / "there.gguf")), logits(open_checkpoint(source))
    )


def test_values_are_copied_as_they_are(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    keys = SIZES | {
        "general.name": "caf\u00e9",
        "general.alignment": 64,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
        "tokenizer.ggml.scores": [0.5] * VOCAB,
        "tokenizer.ggml.add_bos_token": True,
        "general.file_type": 1,
    }
    source, out = write_gguf("llama", keys, ternary_tensors("TQ2_0", block_scale)), tmp_path / "out.gguf"
    converted(source, out, "TQ1_0")
    before, after = gguf.GGUFReader(source).fields, gguf.GGUFReader(out).fields
    new = {"general.file_type", "general.quantization_version"}
    kept = {key for key in before if not key.startswith("GGUF.")} - {"general.alignment", "general.file_type"}
    assert {key for key in after if not key.startswith("GGUF.")} == kept | new
    for key in kept:
        assert after[key].types == before[key].types
        assert after[key].contents() == before[key].contents()
    assert after["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_TQ1_0


@pytest.mark.parametrize("between", ["F16", "F32", "Q8_0"])
def test_ternary_numbers_in_other_types_are_found(
    write_gguf: Callable[..., Path], tmp_path: Path, between: str
) -> None:
    """Block scales that are 127 times a float16, so that Q8_0 holds them exactly too."""
    scales = [float(np.float16(127 * np.float16(d))) for d in (2.0**-12, 2.0**-10)]
    source = write_gguf("llama", SIZES, ternary_tensors("TQ2_0", lambda block: scales[block % 2]))
    converted(source, tmp_path / "wide.gguf", between)
    converted(tmp_path / "wide.gguf", tmp_path / "back.gguf", "TQ2_0")
    first, back = read(source), read(tmp_path / "back.gguf")
    for name in first:
        np.testing.assert_array_equal(first[name], back[name])


def test_one_scale_that_is_no_half_becomes_a_factor(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    tensors = ternary_tensors("TQ2_0", block_scale)
    scale = np.float32(1 / 3)
    weights = trits(1, MATRICES["attn_k"]).astype(np.float32) * scale
    out = tmp_path / "out.gguf"
    converted(write_gguf("llama", SIZES, tensors | {"blk.0.attn_k.weight": weights}), out, "TQ1_0")
    found = read(out)
    np.testing.assert_array_equal(found["blk.0.attn_k.weight"] * found["blk.0.attn_k.scale"], weights)
    assert found["blk.0.attn_k.scale"].tolist() == [scale]


def test_a_file_of_bitnet_cpp_becomes_one_of_llama_cpps_types(tmp_path: Path) -> None:
    """I2_S: blocks of 128 codes, m, m + 32, m + 64 and m + 96 from the upper bits on, then the scale."""
    rng = np.random.default_rng(4)
    number, data = 36, b""
    infos = []

    def add(name: str, shape: tuple[int, ...], kind: int, content: bytes) -> None:
        nonlocal data
        infos.append((name, shape[::-1], kind, len(data)))
        data += content + bytes(-len(content) % 32)

    add("token_embd.weight", (40, HIDDEN), 0, rng.normal(size=(40, HIDDEN)).astype("<f4").tobytes())
    add("output_norm.weight", (HIDDEN,), 0, np.ones(HIDDEN, "<f4").tobytes())
    for layer in range(2):
        for name, width in NORMS.items():
            add(f"blk.{layer}.{name}.weight", (width,), 0, np.ones(width, "<f4").tobytes())
    for seed, name in enumerate(LINEARS):
        shape = MATRICES[name.split(".")[-1]]
        codes = (trits(seed, shape) + 1).astype(np.uint8).reshape(-1, 4, 32)
        body = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
        add(f"{name}.weight", shape, number, body.tobytes() + struct.pack("<f", 0.3).ljust(32, b"\0"))
    keys = gguf_keys("bitnet-b1.58") | {f"bitnet-b1.58.{key}": value for key, value in SIZES.items()}
    source, out = tmp_path / "i2_s.gguf", tmp_path / "out.gguf"
    source.write_bytes(gguf_bytes([("general.architecture", "bitnet-b1.58"), *keys.items()], infos, data))
    converted(source, out, "TQ1_0")
    found = read(out)
    for seed, name in enumerate(LINEARS):
        values = found[f"{name}.weight"] * found[f"{name}.scale"]
        np.testing.assert_array_equal(values, trits(seed, MATRICES[name.split(".")[-1]]) * np.float32(0.3))
    np.testing.assert_array_equal(logits(open_checkpoint(out)), logits(open_checkpoint(source)))


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in TERNARY])
def test_other_types_by_the_gguf_packages_quantisers(tmp_path: Path, kind: str) -> None:
    folder, out = write_bitnet(tmp_path / "model", "undeclared"), tmp_path / "out.gguf"
    converted(folder, out, kind, outer="Q8_0")
    source, tensors = open_checkpoint(folder), {t.name: t for t in gguf.GGUFReader(out).tensors}
    name = f"{LINEARS[-1]}.weight"
    wanted = gguf.quants.quantize(source.tensors[name].dequantize(), QUANTS[kind])
    assert tensors[name].tensor_type.name == kind
    np.testing.assert_array_equal(
        np.asarray(tensors[name].data).view(np.uint8).ravel(), wanted.view(np.uint8).ravel()
    )
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


# ---- what is refused


def test_ordinary_weights_are_refused(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    tensors = ternary_tensors("TQ2_0", block_scale)
    noise = np.random.default_rng(0).normal(size=MATRICES["attn_v"]).astype(np.float32)
    source = write_gguf("llama", SIZES, tensors | {"blk.1.attn_v.weight": noise})
    with pytest.raises(
        EdgeError, match=r"blk\.1\.attn_v\.weight \(F32\) is not ternary and the architecture"
    ):
        converted(source, tmp_path / "out.gguf", "TQ1_0")
    assert not (tmp_path / "out.gguf").exists()


def test_quantised_weights_of_a_bitnet_are_no_master_weights(tmp_path: Path) -> None:
    """Their mean magnitude is not the one that the model was trained with."""
    converted(write_bitnet(tmp_path / "model", "undeclared"), tmp_path / "q.gguf", "Q4_0")
    with pytest.raises(EdgeError, match="no master weights"):
        converted(tmp_path / "q.gguf", tmp_path / "out.gguf", "TQ1_0")


@pytest.mark.parametrize(
    ("architecture", "kind", "more", "sentence"),
    [
        ("bitnet", "TQ2_0", {}, "rows of 32 weights, and TQ2_0 takes multiples of 256"),
        ("llama", "TQ9_0", {}, "cannot be converted to TQ9_0; choose one of"),
        ("llama", "F16", {"outer": "TQ1_0"}, "cannot be of type TQ1_0"),
    ],
)
def test_unsuitable_requests(
    write_gguf: Callable[..., Path], tmp_path: Path, architecture: str, kind: str, more: Any, sentence: str
) -> None:
    assert (HEADS, KV_HEADS) == (4, 2)
    with pytest.raises(EdgeError, match=sentence):
        converted(write_gguf(architecture), tmp_path / "out.gguf", kind, **more)


def test_numbers_that_the_type_cannot_hold_are_refused(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    huge = np.full((VOCAB, 32), 1e6, np.float32)
    source = write_gguf("llama", {}, {"token_embd.weight": huge})
    with pytest.raises(EdgeError, match=r"token_embd\.weight holds values above 65504"):
        converted(source, tmp_path / "out.gguf", "F16", outer="F16")
    source = write_gguf("llama", {}, {"token_embd.weight": huge * np.float32(np.nan)})
    with pytest.raises(EdgeError, match="not finite"):
        converted(source, tmp_path / "out.gguf", "F16", outer="F16")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_folder_of_another_architecture_is_refused(write_hf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="its architecture is bitnet, and this is qwen2"):
        converted(write_hf("qwen2"), tmp_path / "out.gguf", "F16")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"hidden_act": "gelu"}, "no GGUF architecture is a BitNet with the activation gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling by the rule yarn"),
    ],
)
def test_folders_that_gguf_cannot_describe(tmp_path: Path, config: Any, sentence: str) -> None:
    with pytest.raises(EdgeError, match=sentence):
        converted(write_bitnet(tmp_path / "model", config=config), tmp_path / "out.gguf", "TQ2_0")


def test_damaged_codes_leave_nothing_behind(tmp_path: Path) -> None:
    folder = write_bitnet(tmp_path / "model")
    content = bytearray((folder / "model.safetensors").read_bytes())
    body = packed(trits(4, MATRICES["ffn_gate"])).tobytes()
    content[content.index(body) + 17] = 0xFF
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EdgeError, match=r"gate_proj\.weight holds values other than -1, 0 and 1"):
        converted(folder, tmp_path / "out.gguf", "TQ2_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- the file


def test_the_source_is_not_overwritten(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = write_gguf("llama")
    (tmp_path / "link.gguf").symlink_to(source)
    before = source.read_bytes()
    with pytest.raises(EdgeError, match="give the result another name"):
        converted(tmp_path / "link.gguf", source, "F16")
    assert source.read_bytes() == before


def test_a_source_that_changes_meanwhile_is_noticed(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = write_gguf("llama")
    other = shutil.copy(source, tmp_path / "other.gguf")

    def replace(done: int, total: int) -> None:
        shutil.copy(other, source)

    with pytest.raises(EdgeError, match="changed while it was read"):
        converted(source, tmp_path / "out.gguf", "F16", progress=replace)
    assert not (tmp_path / "out.gguf").exists()


def test_progress_counts_the_bytes_of_the_tensors(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    converted(write_gguf("llama"), tmp_path / "out.gguf", "F16", progress=lambda *at: calls.append(at))
    total = sum(int(t.n_bytes) for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)

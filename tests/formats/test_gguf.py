"""Sound GGUF files: against the gguf package's own reader, and the configuration of each architecture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.gguf import open_gguf

KEYS = {
    "general.name": "tiny ünïcode",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{i}é" for i in range(39)] + [""],
    "tokenizer.ggml.scores": [-0.5 * i for i in range(40)],
    "tokenizer.ggml.token_type": [1] * 40,
    "tokenizer.ggml.merges": ["a b", "Ġ x"],
    "tokenizer.ggml.add_bos_token": True,
    "rope.freq_base": 5000.0,
}


def same(value: Any, stock: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.tolist() == stock
    return type(value) is type(stock) and value == stock


def compare_with_stock_reader(path: Path) -> None:
    stock = gguf.GGUFReader(path)
    checkpoint = open_gguf(path)
    names = [name for name in stock.fields if not name.startswith("GGUF.")]
    assert list(checkpoint.metadata) == names
    assert len(checkpoint.metadata) == len(names)
    for name in names:
        assert same(checkpoint.metadata[name], stock.fields[name].contents()), name
    assert list(checkpoint.tensors) == [t.name for t in stock.tensors]
    for expected in stock.tensors:
        tensor = checkpoint.tensors[expected.name]
        assert (tensor.name, tensor.type) == (expected.name, expected.tensor_type.name)
        assert tensor.shape == tuple(expected.shape.tolist()[::-1])
        assert tensor.nbytes == expected.n_bytes
        assert tensor.elements == expected.n_elements
        assert tensor.data.dtype == np.uint8
        assert tensor.data.shape[:-1] == tensor.shape[:-1]
        np.testing.assert_array_equal(tensor.data.reshape(-1), expected.data.view(np.uint8).reshape(-1))


def test_fields_and_tensors_are_those_of_the_stock_reader(write_gguf: Callable[..., Path]) -> None:
    raw = gguf.quants.quantize(np.ones((32, 64), np.float32), gguf.GGMLQuantizationType.Q5_1)
    compare_with_stock_reader(write_gguf(keys=KEYS, tensors={"blk.1.ffn_down.weight": (raw, "Q5_1")}))


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(write_gguf: Callable[..., Path], alignment: int) -> None:
    compare_with_stock_reader(write_gguf(keys={"general.alignment": alignment}))


def test_the_real_model_is_read_as_by_the_stock_reader(smollm2: Path) -> None:
    compare_with_stock_reader(smollm2)


def test_the_real_model_opens_fast(smollm2: Path) -> None:
    """Once gguf is imported; the vocabulary is decoded only when it is asked for."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        open_gguf(smollm2)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.25


def test_tensors_are_mapped_read_only(write_gguf: Callable[..., Path]) -> None:
    tensor = open_checkpoint(write_gguf()).tensors["token_embd.weight"]
    assert not tensor.data.flags.writeable
    assert not tensor.data.flags.owndata
    base: Any = tensor.data
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"


def test_rows_are_dequantised(write_gguf: Callable[..., Path]) -> None:
    embedding = np.arange(40 * 32, dtype=np.float32).reshape(40, 32)
    raw = gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0)
    tensor = open_gguf(write_gguf(tensors={"token_embd.weight": (raw, "Q8_0")})).tensors["token_embd.weight"]
    everything = tensor.dequantize()
    assert np.abs(everything - embedding).max() <= embedding.max() / 254
    np.testing.assert_array_equal(tensor.dequantize(slice(3, 5)), everything[3:5])
    np.testing.assert_array_equal(tensor.dequantize(np.array([7, 0])), everything[[7, 0]])


def test_common_numbers(write_gguf: Callable[..., Path]) -> None:
    c = open_gguf(write_gguf(keys={"rope.freq_base": 5000.0})).config
    assert (c.architecture, c.vocab_size, c.hidden_size, c.n_layers) == ("llama", 40, 32, 2)
    assert (c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_size, c.context_length) == (4, 2, 8, 64, 128)
    assert c.norm_eps == pytest.approx(1e-5)
    assert c.rope.base == 5000.0
    assert c.rope.dims == 8
    assert (c.embedding_scale, c.norm_weight_offset, c.attention_scale) == (1.0, 0.0, None)


def test_heads_default_to_no_sharing(write_gguf: Callable[..., Path]) -> None:
    tensors = {f"blk.{i}.attn_{x}.weight": np.zeros((32, 32), np.float32) for i in range(2) for x in "kv"}
    assert (
        open_gguf(write_gguf(keys={"attention.head_count_kv": None}, tensors=tensors)).config.n_kv_heads == 4
    )


@pytest.mark.parametrize(
    ("name", "architecture", "style", "activation"),
    [
        ("llama", "llama", "interleaved", "silu"),
        ("qwen2", "qwen2", "half", "silu"),
        ("qwen3", "qwen3", "half", "silu"),
        ("gemma2", "gemma2", "half", "gelu_tanh"),
        ("gemma3", "gemma3", "half", "gelu_tanh"),
        ("phi3", "phi3", "half", "silu"),
        ("bitnet", "bitnet", "half", "silu"),
        ("bitnet-b1.58", "bitnet", "half", "relu2"),
    ],
)
def test_architectures(
    write_gguf: Callable[..., Path], name: str, architecture: str, style: str, activation: str
) -> None:
    """RoPE style from llama.cpp's llama_model_rope_type, activations from its graphs."""
    c = open_gguf(write_gguf(name)).config
    assert (c.architecture, c.rope.style, c.activation) == (architecture, style, activation)


def test_gemma2_numbers(write_gguf: Callable[..., Path]) -> None:
    c = open_gguf(
        write_gguf("gemma2", {"attention.sliding_window": 16, "final_logit_softcapping": 20.0})
    ).config
    assert c.sliding_window == 16
    assert c.sliding_layers == (True, False)
    assert c.attention_softcap == 50.0
    assert c.logits_softcap == 20.0
    assert c.embedding_scale == pytest.approx(math.sqrt(32))
    assert c.norm_weight_offset == 0.0


def test_gemma3_numbers(write_gguf: Callable[..., Path]) -> None:
    keys = {
        "attention.sliding_window": 16,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    c = open_gguf(write_gguf("gemma3", keys)).config
    assert c.sliding_layers == (True, True)  # 5 of 6, and the tiny model has 2 layers
    assert c.rope.base == 1e6
    assert c.rope.local_base == 10000.0
    assert c.rope.scaling == {"rope_type": "linear", "factor": 8.0}
    assert c.attention_softcap is None
    assert c.logits_softcap is None
    pattern = open_gguf(
        write_gguf("gemma3", keys | {"attention.sliding_window_pattern": [False, True]})
    ).config
    assert pattern.sliding_layers == (False, True)
    assert open_gguf(write_gguf("gemma3")).config.sliding_window is None


def test_phi3_longrope(write_gguf: Callable[..., Path]) -> None:
    factors = {f"rope_factors_{x}.weight": np.ones(4, np.float32) for x in ("long", "short")}
    keys = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    c = open_gguf(write_gguf("phi3", keys | {"attention.sliding_window": 7}, factors)).config
    assert c.rope.scaling == {
        "rope_type": "longrope",
        "attention_factor": 1.25,
        "original_max_position_embeddings": 64,
    }
    assert c.sliding_window is None  # llama.cpp ignores it in Phi-3 files


def test_yarn(write_gguf: Callable[..., Path]) -> None:
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    assert open_gguf(write_gguf("qwen2", keys)).config.rope.scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 16.0,
        "original_max_position_embeddings": 32,
    }


def write_parts(write_gguf: Callable[..., Path], count: int = 3, total: int | None = None) -> list[Path]:
    """The tiny model in parts as llama-gguf-split writes them: keys in the first, tensors in all."""
    whole = open_gguf(write_gguf())
    tensors = list(whole.tensors.values())
    paths = []
    for number in range(count):
        path = whole.path.with_name(f"model-{number + 1:05d}-of-{count:05d}.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, value in whole.metadata.items():
                if key.startswith("llama."):
                    (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors) if total is None else total)
        for tensor in tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.dequantize())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_parts_make_the_whole(write_gguf: Callable[..., Path]) -> None:
    paths = write_parts(write_gguf)
    whole = open_gguf(write_gguf())
    for path in (paths[0], paths[2]):
        parts = open_gguf(path)
        assert parts.path == paths[0]
        assert parts.config == whole.config
        assert set(parts.tensors) == set(whole.tensors)
        for name, tensor in whole.tensors.items():
            np.testing.assert_array_equal(parts.tensors[name].data, tensor.data)


def test_missing_part_is_named(write_gguf: Callable[..., Path]) -> None:
    paths = write_parts(write_gguf)
    paths[1].unlink()
    with pytest.raises(EdgeError, match=r"00002-of-00003.gguf: part 2 of 3 of the model is missing"):
        open_gguf(paths[0])
    paths[0].unlink()
    with pytest.raises(EdgeError, match=r"00001-of-00003.gguf: no such file"):
        open_gguf(paths[2])


def test_parts_that_do_not_belong_together(write_gguf: Callable[..., Path]) -> None:
    paths = write_parts(write_gguf)
    second = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(EdgeError, match="is not part 2 of 3"):
        open_gguf(paths[0])
    paths[1].write_bytes(second)
    renamed = paths[0].rename(paths[0].with_name("renamed.gguf"))
    with pytest.raises(EdgeError, match="one of 3 parts of a model, but its name"):
        open_gguf(renamed)
    with pytest.raises(EdgeError, match="the parts hold 20 tensors instead of 99"):
        open_gguf(write_parts(write_gguf, total=99)[0])

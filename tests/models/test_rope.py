"""RoPE frequencies of published models against those of transformers, and the rules for bad ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import ModelConfig, RopeConfig
from edgellm.formats.tensor import Tensor
from edgellm.models.rope import local_rope_table, rope_table, trained_context

GOLDENS = Path(__file__).parent / "goldens"
ROPES: dict[str, dict[str, Any]] = json.loads((GOLDENS / "rope.json").read_text())
LONGROPE = {
    "short_factor": [1.0, 2.0],
    "long_factor": [4.0, 8.0],
    "original_max_position_embeddings": 4096,
}


def checkpoint(
    rope: RopeConfig, context: int = 131072, head_dim: int = 4, **tensors: list[float]
) -> Checkpoint:
    """With __ for a dot in the tensors' names."""
    arrays = {name.replace("__", "."): np.array(values, np.float32) for name, values in tensors.items()}
    config = ModelConfig("llama", context, 10, 8, 1, 2, 1, head_dim, 12, 1e-5, rope)
    named = {name: Tensor(name, "F32", a.shape, a.view(np.uint8)) for name, a in arrays.items()}
    return Checkpoint(Path("tiny.gguf"), "gguf", config, named)


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_of_published_models(name: str) -> None:
    fields, golden = ROPES[name], np.load(GOLDENS / "rope.npz")[name]
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    rope = RopeConfig(fields["rope_theta"], scaling=fields["rope_scaling"])
    table = rope_table(checkpoint(rope, fields["max_position_embeddings"], head_dim), 4096)
    assert table.inv_freq.dtype == np.float32
    np.testing.assert_allclose(table.inv_freq, golden[:-1], rtol=3e-6)
    assert table.magnitude == pytest.approx(golden[-1])


def test_rotated_part_of_a_head() -> None:
    table = rope_table(checkpoint(RopeConfig(base=10000.0, dims=4), head_dim=16), 10)
    np.testing.assert_allclose(table.inv_freq, [1.0, 0.01])


def test_dynamic_ntk_changes_nothing_within_the_trained_context() -> None:
    rope = RopeConfig(scaling={"rope_type": "dynamic", "factor": 2.0})
    np.testing.assert_allclose(rope_table(checkpoint(rope, context=64), 64).inv_freq, [1.0, 0.01])


@pytest.mark.parametrize(("context", "divisors"), [(4096, [1, 2]), (4097, [4, 8])])
def test_longrope_chooses_by_context(context: int, divisors: list[float]) -> None:
    phi = checkpoint(RopeConfig(scaling={"type": "su", **LONGROPE}))
    table = rope_table(phi, context)
    np.testing.assert_allclose(table.inv_freq, np.array([1.0, 0.01]) / divisors)
    assert table.magnitude == pytest.approx(
        math.sqrt(1 + math.log(32) / math.log(4096))
    )  # 1.190, as published
    assert trained_context(phi) == 4096


def test_longrope_divisors_from_the_tensors_of_a_gguf_file() -> None:
    scaling = {
        "rope_type": "longrope",
        "attention_factor": 1.5,
        "original_max_position_embeddings": 32,
    }
    tensors = {"rope_factors_short__weight": [1.0, 2.0], "rope_factors_long__weight": [4.0, 8.0]}
    phi = checkpoint(RopeConfig(scaling=scaling), **tensors)
    np.testing.assert_allclose(rope_table(phi, 32).inv_freq, [1.0, 0.005])
    np.testing.assert_allclose(rope_table(phi, 33).inv_freq, [0.25, 0.00125])
    assert rope_table(phi, 33).magnitude == 1.5
    assert trained_context(phi) == 32


def test_llama3_divisors_from_the_tensor_of_a_gguf_file() -> None:
    table = rope_table(checkpoint(RopeConfig(), rope_freqs__weight=[1.0, 8.0]), 10)
    np.testing.assert_allclose(table.inv_freq, [1.0, 0.01 / 8])


def test_local_layers_have_their_own_unscaled_base() -> None:
    rope = RopeConfig(1e6, scaling={"rope_type": "linear", "factor": 8.0}, local_base=1e4)
    np.testing.assert_allclose(local_rope_table(checkpoint(rope)).inv_freq, [1.0, 0.01])
    np.testing.assert_allclose(rope_table(checkpoint(rope), 10).inv_freq, [1 / 8, 1e-3 / 8], rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "spiral"}, "the RoPE scaling 'spiral' is not supported"),
        ({"rope_type": "linear"}, "'linear' lacks the number 'factor'"),
        ({"rope_type": "linear", "factor": 0}, "'linear' has an impossible number"),
        ({"rope_type": "linear", "factor": "8"}, "'linear' has an impossible number"),
        ({"rope_type": "yarn", "factor": math.nan}, "'yarn' does not fit 4 dimensions"),
        ({**LONGROPE, "short_factor": [1.0]}, "'longrope' does not fit 4 dimensions"),
    ],
)
def test_bad_scaling_is_one_sentence(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=rf"tiny\.gguf: .*{message}"):
        rope_table(checkpoint(RopeConfig(scaling=scaling)), 10)


def test_a_divisor_tensor_of_the_wrong_length() -> None:
    with pytest.raises(EdgeError, match=r"rope_freqs\.weight has a shape that disagrees"):
        rope_table(checkpoint(RopeConfig(), rope_freqs__weight=[1.0]), 10)


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_divisor(divisor: float) -> None:
    with pytest.raises(EdgeError, match=r"rope_freqs\.weight holds a divisor that is not a positive number"):
        rope_table(checkpoint(RopeConfig(), rope_freqs__weight=[1.0, divisor]), 10)

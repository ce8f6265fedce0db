"""Mutated safetensors headers and configurations either open or raise EdgeError."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.formats.hf import open_hf

SLACK = 8 << 20
SECONDS = 20.0
HERE = [HealthCheck.function_scoped_fixture]


def survives(folder: Path) -> bool:
    """Whether the folder opens. Fails on anything but EdgeError, on a hang and on a large allocation."""
    tracemalloc.start()
    start = time.perf_counter()
    sentence = ""
    try:
        for tensor in open_hf(folder).tensors.values():
            assert tensor.data.nbytes == tensor.nbytes
    except EdgeError as error:
        sentence = str(error)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not sentence or str(folder) in sentence
    assert seconds < SECONDS
    assert peak < (folder / "model.safetensors").stat().st_size + SLACK
    return not sentence


@pytest.fixture
def folder(write_hf: Callable[..., Path]) -> Path:
    return write_hf("gemma2", tensors={"lm_head.weight": np.zeros((40, 32), np.float16)})


@settings(max_examples=150, deadline=None, suppress_health_check=HERE)
@given(data=st.data())
def test_any_bytes_of_the_header_may_change(folder: Path, data: st.DataObject) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    # a new file each time: views of the old one may still be mapped
    path.unlink()
    path.write_bytes(content[:cut])
    survives(folder)
    path.unlink()
    path.write_bytes(whole)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**63, 1e400, 0.5, 1e-30, 1e300, 7]), st.none(), st.booleans()
)
VALUES = st.one_of(NUMBERS, st.text(max_size=5), st.lists(NUMBERS, max_size=4))
KEYS = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "quantization_config",
    "hidden_activation",
]
ROPE = st.dictionaries(
    st.sampled_from(["rope_type", "type", "factor", "rope_theta", "full_attention", "sliding_attention"]),
    st.one_of(
        VALUES,
        st.sampled_from(["linear", "llama3", "yarn", "longrope"]),
        st.dictionaries(st.just("x"), VALUES),
    ),
    max_size=3,
)


@settings(max_examples=250, deadline=None, suppress_health_check=HERE)
@given(changes=st.dictionaries(st.sampled_from(KEYS), st.one_of(VALUES, ROPE), min_size=1, max_size=3))
def test_any_value_of_the_configuration_may_change(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | changes))
    survives(folder)
    path.write_text(whole)
    assert survives(folder)

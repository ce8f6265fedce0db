"""Sessions of the reference executor: however the tokens come in, the logits are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"
NAMES = ["llama", "gemma3", "phi3", "opt"]  # full and sliding windows, rotary and learned positions
TOKENS = np.load(GOLDENS / "llama" / "logits.npz")["tokens"].astype(np.int64)


def executor(name: str, kv_dtype: type = np.float32) -> ReferenceExecutor:
    checkpoint = open_checkpoint(GOLDENS / name)
    return ReferenceExecutor(build_program(checkpoint), checkpoint, kv_dtype)


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_decode_equals_prefill(name: str) -> None:
    reference = executor(name)
    expected = reference.new_session(64).forward(TOKENS, all_logits=True)
    session = reference.new_session(64)
    for token, logits in zip(TOKENS, expected, strict=True):
        assert_same(session.decode(int(token)), logits)
    assert session.position == len(TOKENS)


@pytest.mark.parametrize("name", NAMES)
def test_split_calls_equal_one(name: str) -> None:
    reference = executor(name)
    expected = reference.new_session(64).forward(TOKENS, all_logits=True)
    session = reference.new_session(64)
    assert_same(session.prefill(TOKENS[:17]), expected[16])
    assert_same(session.forward(TOKENS[17:40], all_logits=True), expected[17:40])
    assert_same(session.prefill(TOKENS[40:]), expected[-1])


@pytest.mark.parametrize("name", NAMES)
def test_rewind_forgets(name: str) -> None:
    reference = executor(name)
    expected = reference.new_session(64).forward(TOKENS, all_logits=True)
    session = reference.new_session(80)
    session.prefill(TOKENS[:20])
    session.prefill(TOKENS[::-1])  # a continuation to be forgotten
    session.rewind(20)
    assert_same(session.forward(TOKENS[20:], all_logits=True), expected[20:])
    session.rewind(0)
    assert_same(session.prefill(TOKENS), expected[-1])


def test_sessions_do_not_see_each_other() -> None:
    reference = executor("llama")
    alone = reference.new_session(64).prefill(TOKENS)
    one, two = reference.new_session(64), reference.new_session(64)
    one.prefill(TOKENS[:10])
    two.prefill(TOKENS[::-1])
    assert_same(one.prefill(TOKENS[10:]), alone)


def test_half_precision_cache_changes_little_but_something() -> None:
    exact = executor("llama").new_session(64).forward(TOKENS, all_logits=True)
    rounded = executor("llama", np.float16).new_session(64).forward(TOKENS, all_logits=True)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05


def test_results_belong_to_the_caller() -> None:
    session = executor("llama").new_session(64)
    first = session.prefill(TOKENS[:4])
    kept = first.copy()
    session.decode(5)
    assert (first == kept).all()


def test_context_is_bounded_by_the_model_and_by_the_session() -> None:
    reference = executor("llama")
    for context in (0, 257):
        with pytest.raises(EdgeError, match="choose --ctx between 1 and 256"):
            reference.new_session(context)
    session = reference.new_session(8)
    session.prefill(TOKENS[:8])
    with pytest.raises(EdgeError, match="longer than the context of 8"):
        session.decode(1)


def test_tokens_are_checked() -> None:
    session = executor("llama").new_session(8)
    with pytest.raises(EdgeError, match="prompt is empty"):
        session.prefill([])
    with pytest.raises(EdgeError, match="outside the vocabulary of 128"):
        session.decode(128)
    assert session.position == 0


def test_describe_names_every_tensor() -> None:
    paths = executor("llama").describe()
    assert paths["blk.0.attn_q.weight"] == "NumPy float32, dequantised from BF16"
    assert len(paths) == 21


def test_default_model_continues_english(smollm2: Path) -> None:
    """SmolLM2-135M at 4 bits knows the capital of France; ids are those of its vocabulary."""
    checkpoint = open_checkpoint(smollm2)
    words = {token: i for i, token in enumerate(checkpoint.metadata["tokenizer.ggml.tokens"])}
    prompt = [words[word] for word in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    session = ReferenceExecutor(build_program(checkpoint), checkpoint).new_session(16)
    logits = session.prefill(prompt)
    assert int(logits.argmax()) == words["ĠParis"]
    assert int(session.decode(words["ĠParis"]).argmax()) == words["."]

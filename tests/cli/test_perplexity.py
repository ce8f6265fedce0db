from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.model import load

TEXT = "hello world, a winner in her world. " * 40


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n")  # the newline at the very end is not part of the text
    return path


def by_hand(model, n_ctx: int) -> tuple[float, float, int]:
    """Perplexity, its standard error and the scored tokens, in float64 from the logits of whole chunks."""
    tokens = np.array(model.tokenizer.encode(TEXT))
    losses = []
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        chunk = tokens[start : start + n_ctx]
        logits = model.logits(chunk).astype(np.float64)
        for i in range(n_ctx // 2, n_ctx - 1):
            odds = np.exp(logits[i])
            losses.append(-math.log(odds[chunk[i + 1]] / odds.sum()))
    perplexity = math.exp(np.mean(losses))
    return perplexity, perplexity * np.std(losses) / math.sqrt(len(losses) - 1), len(losses)


@pytest.mark.parametrize("executor", ["reference", "native"])
def test_it_is_what_the_definition_says(json_of, tiny, text, executor):
    found = json_of("perplexity", tiny, text, "--ctx", "50", "--executor", executor)
    with load(tiny, executor="reference") as model:
        perplexity, error, tokens = by_hand(model, 50)
        chunks = len(model.tokenizer.encode(TEXT)) // 50
    assert (found["tokens"], found["chunks"]) == (tokens, chunks) == (24 * chunks, chunks)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-5 if executor == "reference" else 1e-2)
    assert found["stderr"] == pytest.approx(error, rel=1e-5 if executor == "reference" else 1e-2)


def test_a_kv_cache_in_int8_is_compared_with_float16(json_of, edgellm, tiny, text):
    found = json_of("perplexity", tiny, text, "--ctx", "50", "--kv", "int8")
    plain = json_of("perplexity", tiny, text, "--ctx", "50")
    assert found["kv"] == "int8"
    assert found["fp16"]["perplexity"] == plain["perplexity"] != found["perplexity"]
    assert found["ratio"] == found["perplexity"] / plain["perplexity"] == pytest.approx(1, abs=0.02)
    lines = edgellm("perplexity", tiny, text, "--ctx", "50", "--kv", "int8").stdout.splitlines()
    assert lines[0].startswith(f"perplexity {found['perplexity']:.4f}")
    assert lines[1].startswith(f"with the KV cache in fp16 {plain['perplexity']:.4f}")


def test_the_reference_executor_has_no_int8_cache(edgellm, sentence, tiny, text):
    process = edgellm("perplexity", tiny, text, "--ctx", "50", "--kv", "int8", "--executor", "reference")
    assert "no KV cache in int8; use the native one" in sentence(process)


def test_chunks_limits_what_is_scored(json_of, tiny, text):
    found = json_of("perplexity", tiny, text, "--ctx", "50", "--chunks", "1", "--executor", "reference")
    assert (found["tokens"], found["chunks"]) == (24, 1)


def test_without_json_one_line_is_printed(edgellm, tiny, text):
    process = edgellm("perplexity", tiny, text, "--ctx", "50", "--executor", "reference")
    assert process.stdout.startswith("perplexity ")
    assert process.stdout.count("\n") == 1


def test_bad_input_is_one_sentence(edgellm, sentence, tiny, text, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"abc\xff")
    short = tmp_path / "short.txt"
    short.write_text("hello")
    cases = [
        (tmp_path / "missing.txt", "missing.txt: cannot be read (no such file or directory)"),
        (tmp_path, "cannot be read (is a directory)"),
        (binary, "binary: not UTF-8 text (byte 3)"),
        (short, "has 1 tokens; perplexity with --ctx 50 needs at least 100"),
    ]
    for file, phrase in cases:
        assert phrase in sentence(edgellm("perplexity", tiny, file, "--ctx", "50"))

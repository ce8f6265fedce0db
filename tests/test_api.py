"""What a Python program sees: edgellm.load and the Model."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program
from tests.e2e.tiny_model import CONTEXT, write_tiny_gguf

GREEDY = {"temperature": 0.0}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(path):
    with edgellm.load(path, executor="reference") as loaded:
        yield loaded


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        edgellm.lode  # noqa: B018


def test_generate_takes_the_likeliest_token_each_time(model):
    result = model.generate("hello world", max_tokens=6, **GREEDY)
    tokens = model.tokenizer.encode("hello world")
    assert result.prompt_tokens == len(tokens)
    for token in result.tokens:
        assert token == int(model.logits(tokens)[-1].argmax())
        tokens.append(token)
    assert result.text == model.tokenizer.decode(result.tokens, continuation=True)
    assert result.stop_reason == "length"


def test_text_and_token_ids_are_the_same_prompt(model):
    tokens = model.tokenizer.encode("hello world")
    by_text, by_tokens = (model.generate(p, max_tokens=6, **GREEDY) for p in ("hello world", tokens))
    assert by_text.tokens == by_tokens.tokens


def test_stream_yields_the_text_of_generate(model):
    pieces = list(model.stream("hello", max_tokens=20, **GREEDY))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate("hello", max_tokens=20, **GREEDY).text


def test_chat_is_generate_on_the_template(model):
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    expected = model.generate(prompt, max_tokens=8, **GREEDY)
    assert model.chat(MESSAGES, max_tokens=8, **GREEDY).tokens == expected.tokens
    assert "".join(model.chat(MESSAGES, max_tokens=8, stream=True, **GREEDY)) == expected.text


def test_a_chat_session_answers_as_a_fresh_run_of_the_whole_conversation_does(model):
    session = model.chat_session(system="world")
    messages = [{"role": "system", "content": "world"}]
    for question in ("hello", "hell", "a winner"):
        messages.append({"role": "user", "content": question})
        answer = "".join(session.ask(question, max_tokens=5, **GREEDY))
        assert answer == model.chat(messages, max_tokens=5, **GREEDY).text
        messages.append({"role": "assistant", "content": answer})
    assert session.messages == messages[1:]


def test_a_chat_session_that_is_left_early_remembers_what_was_said(model):
    session = model.chat_session()
    answer = session.ask("hello", max_tokens=50, **GREEDY)
    piece = next(answer)
    answer.close()
    assert session.messages == [*MESSAGES, {"role": "assistant", "content": piece}]


def test_logits_are_those_of_the_reference_executor(model, path):
    checkpoint = open_checkpoint(path)
    session = ReferenceExecutor(build_program(checkpoint), checkpoint).new_session(CONTEXT)
    tokens = [5, 9, 200, 7]
    logits = model.logits(tokens)
    assert logits.dtype == np.float32
    assert logits.shape == (4, checkpoint.config.vocab_size)
    for row, token in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, session.decode(token), rtol=1e-4, atol=1e-4)


def test_native_and_reference_agree(model, path):
    tokens = model.tokenizer.encode("hello world, a winner in her world")
    expected = model.logits(tokens)
    with edgellm.load(path, threads=2) as native:
        found = native.logits(tokens)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.01  # the native executor keeps its KV cache and activations in fewer bits


def test_native_is_deterministic(path):
    with edgellm.load(path, threads=2) as native:
        first, second = (native.generate("hello", max_tokens=20, **GREEDY) for _ in range(2))
    assert first.tokens == second.tokens


def test_the_context_is_what_was_asked_for(path):
    with edgellm.load(path, executor="reference", context=7) as small:
        result = small.generate("hello", max_tokens=100, **GREEDY)
    assert (small.context, result.stop_reason, len(result.tokens)) == (7, "context", 7)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"executor": "abacus"}, "no executor 'abacus'"),
        ({"threads": 0}, "number of threads is 0"),
        ({"context": 0}, "not 0"),
        ({"context": CONTEXT + 1}, f"1 to {CONTEXT} tokens"),
    ],
)
def test_wrong_arguments_of_load_are_one_sentence(path, arguments, phrase):
    with pytest.raises(edgellm.EdgeError, match=phrase):
        edgellm.load(path, **arguments)


@pytest.mark.parametrize(
    ("prompt", "arguments", "phrase"),
    [
        ("", {}, "prompt is empty"),
        ("hello", {"max_tokens": 0}, "at least 1"),
        ("hello", {"stop": [""]}, "stop string is empty"),
        ([10**6], {}, "outside the vocabulary"),
        ([1] * (CONTEXT + 1), {}, f"prompt of {CONTEXT + 1} tokens is longer than the context of {CONTEXT}"),
    ],
)
def test_wrong_arguments_of_generate_are_one_sentence(model, prompt, arguments, phrase):
    with pytest.raises(edgellm.EdgeError, match=phrase):
        model.generate(prompt, **arguments)

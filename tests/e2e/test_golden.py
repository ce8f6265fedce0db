"""The default model must say what llama.cpp makes it say: the whole path from file to text, twice over."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import edgellm

PROMPT = "Once upon a time, in a small village by the sea,"
# llama.cpp (ggml 0.25), the same file, greedy. Later the two likeliest tokens are too close to tell apart.
STORY = (
    " there was a wise old wizard named Thorold. He lived in a tower surrounded by a beautiful garden "
    "filled with all sorts of magical creatures.\n\nThorold was known for his kindness and generosity."
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def reference(smollm2):
    with edgellm.load(smollm2, executor="reference") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def native(smollm2):
    with edgellm.load(smollm2, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference_logits(reference):
    """(tokens, vocab) after each token of the prompt and the story."""
    return reference.logits(reference.tokenizer.encode(PROMPT + STORY))


def test_native_tells_llama_cpps_story(native):
    tokens = len(native.tokenizer.encode(STORY))
    assert native.generate(PROMPT, max_tokens=tokens, temperature=0.0).text == STORY


def test_the_reference_finds_each_token_of_the_story_the_likeliest(reference, reference_logits):
    prompt, story = (reference.tokenizer.encode(text) for text in (PROMPT, STORY))
    assert reference_logits.argmax(axis=1)[len(prompt) - 1 : -1].tolist() == story


def test_native_logits_are_those_of_the_reference(native, reference_logits):
    found = native.logits(native.tokenizer.encode(PROMPT + STORY))
    error = np.linalg.norm(found - reference_logits, axis=1) / np.linalg.norm(reference_logits, axis=1)
    assert error.max() < 0.01


def test_a_question_is_answered_and_the_turn_ends(reference):
    answer = reference.chat(QUESTION, max_tokens=40, temperature=0.0)
    assert (answer.text, answer.stop_reason) == ("The capital of France is Paris.", "end_of_turn")


def test_the_command_answers_without_a_model_named(smollm2):
    command = [sys.executable, "-m", "edgellm", "run", QUESTION[0]["content"], "--temp", "0", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["text"] == "The capital of France is Paris."
    assert found["stop_reason"] == "end_of_turn"


def test_a_second_start_gives_its_first_token_soon(smollm2):
    """1.5 s on an idle machine; the processor time does not depend on who else is at work here."""
    code = (
        "import sys, time\n"
        "from edgellm.cli.app import main\n"
        "main(['run', 'hi', '-n', '1', '--threads', '1'])\n"
        "print(time.process_time(), file=sys.stderr)"
    )
    run = [sys.executable, "-c", code]
    subprocess.run(run, capture_output=True, timeout=300, check=True)  # compiles what is not compiled yet
    process = subprocess.run(run, capture_output=True, text=True, timeout=300, check=True)
    assert float(process.stderr.splitlines()[-1]) < 2.5

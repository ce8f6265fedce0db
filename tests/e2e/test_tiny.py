"""The ternary model that comes with edgellm: a known text, from two executors, without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.executors import reference
from edgellm.executors.reference import activate

PROMPT = "Once upon a time, there was a"
STORY = (
    " doctor named Emma. One day, Emma went to the zoo. She saw a big bear with a big bear. The bear was "
    "very happy."
)


@pytest.fixture(scope="module")
def native(shipped: Path):
    with edgellm.load(shipped, threads=2) as loaded:
        yield loaded


def test_it_tells_a_known_story(native) -> None:
    tokens = len(native.tokenizer.encode(STORY, special=False))
    assert native.generate(PROMPT, max_tokens=tokens, temperature=0.0).text == STORY


def test_the_reference_finds_each_token_of_the_story_the_likeliest(shipped: Path, native) -> None:
    with edgellm.load(shipped, executor="reference") as loaded:
        prompt = loaded.tokenizer.encode(PROMPT)
        ids = [*prompt, *loaded.tokenizer.encode(STORY, special=False)]
        logits = loaded.logits(ids)
    assert logits.argmax(axis=1)[len(prompt) - 1 : -1].tolist() == ids[len(prompt) :]
    found = native.logits(ids)
    error = np.linalg.norm(found - logits, axis=1) / np.linalg.norm(logits, axis=1)
    assert error.max() < 0.02  # a value next to the border between two 127ths may be rounded to either


def test_stories_are_much_likelier_than_the_same_words_in_another_order(native) -> None:
    text = "Lily went to the park with her mom. She saw a little dog and the dog wanted to play with a ball."
    shuffled = " ".join(np.random.default_rng(0).permutation(text.split()))
    likely, unlikely = _perplexity(native, text), _perplexity(native, shuffled)
    assert likely < 30
    assert unlikely > 10 * likely


def test_about_half_of_the_neurons_are_idle(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse modes live on that: a gate at or below zero makes its neuron's output zero."""
    active: list[float] = []

    def seen(x: np.ndarray, kind: str) -> np.ndarray:
        active.append(float((x > 0).mean()))
        return activate(x, kind)

    monkeypatch.setattr(reference, "activate", seen)
    with edgellm.load(shipped, executor="reference") as loaded:
        loaded.logits(loaded.tokenizer.encode(PROMPT + STORY))
        assert len(active) == loaded.checkpoint.config.n_layers
    assert max(active) < 0.6
    assert np.mean(active) < 0.52


def test_the_command_needs_no_network(own_cache: Path) -> None:
    command = [sys.executable, "-m", "edgellm", "run", "--model", "tiny", PROMPT, "-n", "8", "--temp", "0"]
    process = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert STORY.startswith(json.loads(process.stdout)["text"])
    assert not (own_cache / "models").exists()


def _perplexity(model, text: str) -> float:
    ids = model.tokenizer.encode(text)
    logits = model.logits(ids).astype(np.float64)
    chosen = np.take_along_axis(logits[:-1], np.array(ids)[1:, None], axis=1)[:, 0]
    return float(np.exp(np.mean(np.log(np.exp(logits[:-1]).sum(axis=1)) - chosen)))

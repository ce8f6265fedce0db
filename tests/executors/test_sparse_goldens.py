"""Bundles of Hugging Face folders with ReLU: OPT, whose up is in memory and tells who fires, and a Llama."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgellm.executors.native import NativeExecutor
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from edgellm.models import build_program
from tests.models.test_goldens import BASES

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"

TOKENS = np.arange(3, 23)


@pytest.mark.parametrize("name", ["opt", "opt-post-norm", "llama-relu"])
@pytest.mark.parametrize("capacity", [0, 2, 1000])
def test_logits_are_those_of_the_reference(
    name: str, capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference decodes the slots by itself and computes every neuron."""
    source = tmp_path / "model"
    source.mkdir()
    shutil.copy(GOLDENS / name / "config.json", source)
    shutil.copy(GOLDENS / BASES.get(name, name) / "model.safetensors", source)
    pack(open_checkpoint(source), tmp_path / "m.edge", mode="sparse-exact")
    open_neurons = SparseFfn.open
    monkeypatch.setattr(
        SparseFfn, "open", lambda self, team, kernel, _: open_neurons(self, team, kernel, capacity)
    )
    checkpoint = open_checkpoint(tmp_path / "m.edge")
    program = build_program(checkpoint, 64)
    expected = ReferenceExecutor(program, checkpoint).new_session(64).forward(TOKENS, all_logits=True)
    executor = NativeExecutor(program, checkpoint, 2)
    session = executor.new_session(64)
    found = [*session.forward(TOKENS[:12], all_logits=True), *map(session.decode, TOKENS[12:].tolist())]
    executor.close()
    assert np.abs(np.array(found) - expected).max() < 5e-3 * np.abs(expected).max()

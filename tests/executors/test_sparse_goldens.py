"""Bundles of Hugging Face folders with ReLU: OPT, whose up is in memory and tells who fires, and a Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgellm.executors.native import NativeExecutor
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from edgellm.models import build_program
from tests.executors.slots import keep_slots
from tests.models.test_goldens import BASES

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"

TOKENS = np.arange(3, 23)


def folder(name: str, path: Path, **changed: object) -> Path:
    """The model of a golden, with some values of its config.json changed."""
    path.mkdir()
    config = json.loads((GOLDENS / name / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changed))
    shutil.copy(GOLDENS / BASES.get(name, name) / "model.safetensors", path)
    return path


def logits(executor: NativeExecutor) -> np.ndarray:
    """Of TOKENS: some together, the rest one by one."""
    session = executor.new_session(64)
    found = [*session.forward(TOKENS[:12], all_logits=True), *map(session.decode, TOKENS[12:].tolist())]
    executor.close()
    return np.array(found)


FATRELU = {"hidden_act": "fatrelu", "hidden_act_param": 0.5}


def test_fatrelu_is_a_relu_that_drops_what_is_small(tmp_path: Path) -> None:
    """The dense model against its reference, which is another one than with ReLU."""
    found = {}
    for act, changed in (("relu", {}), ("fatrelu", FATRELU)):
        checkpoint = open_checkpoint(folder("llama-relu", tmp_path / act, **changed))
        program = build_program(checkpoint, 64)
        expected = ReferenceExecutor(program, checkpoint).new_session(64).forward(TOKENS, all_logits=True)
        found[act] = logits(NativeExecutor(program, checkpoint, 2))
        assert np.abs(found[act] - expected).max() < 5e-3 * np.abs(expected).max()
    assert np.abs(found["relu"] - found["fatrelu"]).max() > 2e-2 * np.abs(found["relu"]).max()


@pytest.mark.parametrize("name", ["opt", "opt-post-norm", "llama-relu", "fatrelu"])
@pytest.mark.parametrize("capacity", [0, 2, 1000])
def test_logits_are_those_of_the_reference(
    name: str, capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference decodes the slots by itself and computes every neuron."""
    changed = FATRELU if name == "fatrelu" else {}
    source = folder("llama-relu" if name == "fatrelu" else name, tmp_path / "model", **changed)
    pack(open_checkpoint(source), tmp_path / "m.edge", mode="sparse-exact")
    keep_slots(monkeypatch, capacity)
    checkpoint = open_checkpoint(tmp_path / "m.edge")
    program = build_program(checkpoint, 64)
    expected = ReferenceExecutor(program, checkpoint).new_session(64).forward(TOKENS, all_logits=True)
    executor = NativeExecutor(program, checkpoint, 2)
    assert np.abs(logits(executor) - expected).max() < 5e-3 * np.abs(expected).max()
    assert executor._sparse is not None
    some = executor._sparse.lists.counts[0] / len(executor._sparse.lists.needed)
    assert 0 < some < 1

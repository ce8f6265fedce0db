"""The reference executor's logits against those of transformers, for every architecture.

tools/goldens/generate.py made the tiny checkpoints and the logits, and says what is in them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.models import build_program

GOLDENS = Path(__file__).parent / "goldens"
BASES: dict[str, str] = json.loads((GOLDENS / "bases.json").read_text())
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))
ROUNDED_ACTIVATIONS = "bitnet-int8"


def open_golden(name: str, folder: Path) -> tuple[Checkpoint, np.ndarray, np.ndarray, np.ndarray]:
    """The checkpoint, put together in `folder`, its tokens, the positions looked at, and their logits."""
    shutil.copy(GOLDENS / name / "config.json", folder)
    shutil.copy(GOLDENS / BASES.get(name, name) / "model.safetensors", folder)
    golden = np.load(GOLDENS / name / "logits.npz")
    return open_checkpoint(folder), golden["tokens"], golden["positions"], golden["logits"]


def reference_logits(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    program = build_program(checkpoint, context=len(tokens))
    return ReferenceExecutor(program, checkpoint).new_session(len(tokens)).forward(tokens, all_logits=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != ROUNDED_ACTIVATIONS])
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    checkpoint, tokens, positions, logits = open_golden(name, tmp_path)
    ours = reference_logits(checkpoint, tokens)[positions]
    assert np.abs(logits).max() > 5  # a logit is worth comparing
    np.testing.assert_allclose(ours, logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", BASES)
def test_every_variant_differs_from_its_base(name: str) -> None:
    """Else its golden would prove nothing about what it varies."""
    variant, base = (np.load(GOLDENS / n / "logits.npz") for n in (name, BASES[name]))
    rows = np.flatnonzero(np.isin(base["positions"], variant["positions"]))
    same = variant["logits"][: len(rows)]
    assert variant["positions"][: len(rows)].tolist() == base["positions"][rows].tolist()
    assert np.abs(same - base["logits"][rows]).max() > 0.05


def test_rounded_inputs_are_those_of_bitnet_as_trained(tmp_path: Path) -> None:
    """transformers' AutoBitLinear rounds the input of each linear to int8, and so does the Program.

    Without rounding we are within a tenth of the logits' spread, and with it much nearer; exact equality
    is out of reach, because a last bit decides now and then which way a value rounds.
    """
    checkpoint, tokens, positions, logits = open_golden(ROUNDED_ACTIVATIONS, tmp_path)

    def error() -> float:
        ours = reference_logits(checkpoint, tokens)
        return float(np.sqrt(np.mean((ours[positions] - logits) ** 2)) / logits.std())

    assert 0.01 < error() < 0.1
    checkpoint.config.input_rounding = "int8"  # as where the configuration names the quantisation
    assert error() < 0.005

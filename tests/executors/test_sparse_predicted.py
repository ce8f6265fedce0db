"""Neurons that a predictor leaves out count as if they had not fired, and all others are exact."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor
from edgellm.flash.predictor import Figures, Trained, Weights, save
from edgellm.flash.predictor_cost import measure
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.formats.edge_pack import pack
from edgellm.models import build_program
from edgellm.perplexity import estimates
from tests.executors.slots import keep_slots

CONTEXT, RANK = 64, 16
PROMPT = np.random.default_rng(3).integers(300, 4000, 20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """With a predictor that nobody has trained."""
    path: Path = tmp_path_factory.mktemp("predicted") / "tiny.edge"
    pack(open_checkpoint(shipped), path, mode="sparse-predicted", gate_in_slots=True)
    checkpoint = open_checkpoint(path)
    assert checkpoint.bundle is not None
    rng = np.random.default_rng(0)
    config = checkpoint.config
    weights = tuple(
        Weights(
            rng.standard_normal((RANK, config.hidden_size)).astype(np.float16),
            rng.standard_normal((config.ffn_size, RANK)).astype(np.float16),
            rng.standard_normal(config.ffn_size).astype(np.float32),
        )
        for _ in range(config.n_layers)
    )
    figures = tuple(Figures(0.5, 0.5, 0.5, 0.5) for _ in weights)
    save(Trained(weights, figures, tokens=1, held_out=1, epochs=1, seed=0), checkpoint.bundle, "none")
    return path


def logits_of(executor: NativeExecutor) -> np.ndarray:
    session = executor.new_session(CONTEXT)
    found = [session.prefill(PROMPT)]
    for _ in range(12):
        found.append(session.decode(int(found[-1].argmax())))
    executor.close()
    return np.array(found)


def predictors_of(checkpoint: Checkpoint) -> list[Weights]:
    tensors = checkpoint.tensors
    return [
        Weights(
            *(
                tensors[f"blk.{layer}.ffn_predictor_{part}"].dequantize()
                for part in ("down.weight", "up.weight", "up.bias")
            )
        )
        for layer in range(checkpoint.config.n_layers)
    ]


def masked(shipped: Path, predictors: Checkpoint) -> np.ndarray:
    """The dense model, with the gates shut of neurons that are not predicted."""
    weights = predictors_of(predictors)

    def shut(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
        gates[weights[layer].scores(inputs) <= 0] = -1

    checkpoint = open_checkpoint(shipped)
    return logits_of(NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2, watch=shut))


@pytest.mark.parametrize("capacity", [0, 25, 1000])
def test_predicted_neurons_are_exact_and_others_nought(
    bundle: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    keep_slots(monkeypatch, capacity)
    checkpoint = open_checkpoint(bundle)
    executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)
    assert executor._sparse is not None
    assert executor._sparse.gates
    found, expected = logits_of(executor), masked(shipped, checkpoint)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    stats = executor._sparse.stats
    assert stats.needed > 0
    assert (stats.missed > 0) == (capacity < 1000)


def test_perplexity_of_each_layer_predicted(bundle: Path, shipped: Path) -> None:
    """All layers predicted is what the bundle runs; of one layer, others' predictors always say yes."""
    predicted, source = open_checkpoint(bundle), open_checkpoint(shipped)
    assert predicted.bundle is not None
    weights = predictors_of(predicted)
    chunks = [np.random.default_rng(i).integers(300, 4000, 30).tolist() for i in range(3)]
    cost = measure(source, predicted.bundle, weights, chunks, 2)

    def perplexity(checkpoint: Checkpoint) -> float:
        executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)
        session = executor.new_session(CONTEXT)
        found = list(estimates(session, [token for chunk in chunks for token in chunk], 30, None))[-1]
        executor.close()
        return found.perplexity

    assert cost.tokens == 3 * 14
    assert cost.without == pytest.approx(perplexity(source), rel=1e-6)
    assert cost.all == pytest.approx(perplexity(predicted), rel=1e-4)
    everyone = [one._replace(down=one.down * 0, bias=one.bias * 0 + 1) for one in weights]
    one = measure(source, predicted.bundle, [*everyone[:3], weights[3], *everyone[4:]], chunks, 2)
    assert one.all == pytest.approx(cost.layers[3], rel=1e-6)
    assert one.layers[0] == pytest.approx(cost.without, rel=1e-6)
    assert abs(one.all / cost.without - 1) > 1e-3


def test_perplexity_takes_some_text(bundle: Path, shipped: Path) -> None:
    predicted = open_checkpoint(bundle)
    assert predicted.bundle is not None
    with pytest.raises(EdgeError, match="no text to measure"):
        measure(open_checkpoint(shipped), predicted.bundle, predictors_of(predicted), [[5]], 1)


def test_without_a_predictor_the_gate_tells(
    shipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(open_checkpoint(shipped), tmp_path / "tiny.edge", mode="sparse-predicted", gate_in_slots=True)
    results = []
    for path in (shipped, tmp_path / "tiny.edge"):
        checkpoint = open_checkpoint(path)
        with caplog.at_level(logging.WARNING, "edgellm"):
            results.append(logits_of(NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)))
    assert (results[0] == results[1]).all()
    assert "train it with edgellm predictor train" in caplog.text

"""Synthetic models: what is printed of them is what they do when run, and near the published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.reference import KvCache, State, Weights, run_op
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program
from edgellm.program.ops import Ffn
from tools.synthetic import write as writer
from tools.synthetic.__main__ import main
from tools.synthetic.figures import measure
from tools.synthetic.law import PEAK, firing_rates, mean_square, thresholds
from tools.synthetic.sample import MEASURED, SETTING, sample_tokens
from tools.synthetic.shapes import SHAPES

TINY = SHAPES["tiny"]
Model = tuple[Path, writer.Written]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("synthetic") / "tiny.gguf"
    return path, writer.write(path, TINY, name="tiny")


def fired_in_reference(path: Path, tokens: np.ndarray) -> list[np.ndarray]:
    """Per layer, bool (T, ffn): whose gate is positive when the reference executor runs the file's ops."""
    checkpoint = open_checkpoint(path)
    program = build_program(checkpoint)
    caches = [KvCache(slot) for slot in program.kv_slots]
    state = State(Weights(checkpoint), tokens, np.arange(len(tokens)), caches)
    fired = []
    for op in program.ops:
        if isinstance(op, Ffn):
            assert op.activation == "relu"
            assert op.gate is not None
            fired.append(state.buffers[op.x] @ state.weights(op.gate).T > 0)
        run_op(op, state)
    assert np.isfinite(state.buffers["logits"]).all()
    return fired


@pytest.fixture(scope="module")
def fired(model: Model) -> list[np.ndarray]:
    return fired_in_reference(model[0], sample_tokens(TINY.vocab, seed=0))


def test_the_figures_are_those_of_a_run_of_the_file(model: Model, fired: list[np.ndarray]) -> None:
    _, written = model
    assert len(fired) == len(written.layers) == TINY.layers
    for layer, figures in zip(fired, written.layers, strict=True):
        layer = layer[SETTING:]
        sets = [set(np.flatnonzero(row).tolist()) for row in layer]
        assert figures.active == pytest.approx(sum(map(len, sets)) / layer.size, rel=1e-3)
        later = range(5, MEASURED)
        for back in range(1, 6):
            new = sum(len(sets[t].difference(*sets[t - back : t])) for t in later)
            assert figures.new[back - 1] == pytest.approx(new / len(later) / TINY.ffn, rel=2e-3)
        again = sum(len(sets[t] & sets[t - 1]) for t in later) / sum(len(sets[t - 1]) for t in later)
        assert figures.again == pytest.approx(again, rel=2e-3)
        counts = sorted(layer.sum(0).tolist(), reverse=True)
        hottest = round(figures.hot * TINY.ffn)
        assert sum(counts[: hottest + 1]) >= 0.8 * sum(counts) >= sum(counts[: hottest - 2])


def test_the_figures_are_near_those_asked_for(model: Model) -> None:
    _, written = model
    assert written.model.active == pytest.approx(0.1, abs=0.005)
    assert 0.2 < written.model.hot < 0.24
    assert 0.022 < written.model.new[-1] < 0.026
    for layer in written.layers:
        assert layer.active == pytest.approx(0.1, abs=0.008)
        assert 0.19 < layer.hot < 0.25
        assert 0.02 < layer.new[-1] < 0.028
        assert list(layer.new) == sorted(layer.new, reverse=True)


def test_other_tokens_show_the_same(model: Model) -> None:
    path, written = model
    tokens = np.random.default_rng(9).integers(0, TINY.vocab, 300)
    for fired in fired_in_reference(path, tokens):
        figures = measure(fired)
        assert figures.active == pytest.approx(written.model.active, abs=0.008)
        assert figures.new[-1] == pytest.approx(written.model.new[-1], abs=0.004)


def test_hot_neurons_are_not_sorted_and_not_the_same_in_every_layer(fired: list[np.ndarray]) -> None:
    rates = [layer.mean(0) for layer in fired]
    places = np.arange(TINY.ffn)
    for number, rate in enumerate(rates):
        assert abs(np.corrcoef(rate, places)[0, 1]) < 0.1
        for other in rates[:number]:
            assert abs(np.corrcoef(rate, other)[0, 1]) < 0.1


def test_up_and_down_have_one_scale_and_only_the_bias_of_gate_another(model: Model) -> None:
    tensors = open_checkpoint(model[0]).tensors

    def scales(name: str) -> np.ndarray:
        data = np.ascontiguousarray(tensors[name].data)
        return data.reshape(len(data), -1, 18)[:, :, :2].copy().view("<f2")[:, :, 0]

    for layer in range(TINY.layers):
        assert len(np.unique(scales(f"blk.{layer}.ffn_up.weight"))) == 1
        assert len(np.unique(scales(f"blk.{layer}.ffn_down.weight"))) == 1
        gate = scales(f"blk.{layer}.ffn_gate.weight")
        assert len(np.unique(gate[:, 1:])) == 1
        assert len(np.unique(gate[:, 0])) > TINY.ffn / 2


def test_the_first_32_dimensions_are_the_same_for_all_tokens_and_layers(model: Model) -> None:
    tensors = open_checkpoint(model[0]).tensors
    assert (tensors["token_embd.weight"].dequantize()[:, :32] == 1).all()
    assert not tensors["output.weight"].dequantize()[:, :32].any()
    for layer in range(TINY.layers):
        for name in ("attn_output", "ffn_down"):
            weights = tensors[f"blk.{layer}.{name}.weight"].dequantize()
            assert not weights[:32].any()
            assert weights[32:].any(axis=1).all()


def test_a_seed_decides_every_byte(model: Model, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.gguf" for i in range(2)]
    for path, seed in zip(paths, (0, 1), strict=True):
        writer.write(path, TINY, name="tiny", seed=seed)
    first, other = (path.read_bytes() for path in paths)
    assert first == model[0].read_bytes()
    assert first != other
    assert len(first) == len(other) == model[1].size


def test_it_says_that_it_is_synthetic_and_has_a_relu(model: Model) -> None:
    metadata = open_checkpoint(model[0]).metadata
    assert metadata["general.name"] == "synthetic tiny"
    assert metadata["llama.hidden_activation"] == "relu"


def test_measure_counts_by_hand() -> None:
    rows = ["1100", "1000", "1000", "1000", "1000", "1001", "1101", "1010"]
    figures = measure(np.array([[digit == "1" for digit in row] for row in rows]))
    assert figures.active == 13 / 32
    assert figures.hot == 3 / 4  # 8 + 2 + 2 of 13 firings, 80 % being 10.4
    # of the last three tokens: 3 | 1 | 2 is new after one token; neuron 1 was last seen six tokens before
    assert figures.new == (3 / 12, 3 / 12, 3 / 12, 3 / 12, 3 / 12)
    assert figures.again == 4 / 6  # of 0, 0 and 3, 0 and 1 and 3 stay 0, 0 and 3, 0


@pytest.mark.parametrize("mean", [0.01, 0.1, 0.3, 0.5])
def test_the_law_has_the_mean_that_is_asked_for_and_falls_from_its_peak(mean: float) -> None:
    rates = firing_rates(500, mean)
    assert rates.mean() == pytest.approx(mean, rel=1e-6)
    assert (np.diff(rates) < 0).all()
    assert 0.5 < rates[0] / PEAK <= 1


def test_thresholds_and_mean_square_are_those_of_a_normal_variable() -> None:
    g = np.linspace(-8, 8, 16001)
    density = np.exp(-(g**2) / 2) / np.exp(-(g**2) / 2).sum()
    rates = firing_rates(50, 0.1)
    above = g > thresholds(rates)[:, None]
    np.testing.assert_allclose(above @ density, rates, atol=5e-4)
    excess = np.where(above, g - thresholds(rates)[:, None], 0)
    assert mean_square(thresholds(rates)) == pytest.approx(np.mean(excess**2 @ density), rel=1e-4)


def test_ten_percent_of_the_neurons_is_as_skewed_as_the_law_says() -> None:
    rates = firing_rates(11008, 0.1)
    assert rates[: int(0.23 * 11008)].sum() / rates.sum() == pytest.approx(0.8, abs=0.01)


def test_the_shape_is_that_of_its_model() -> None:
    matrices = SHAPES["llama-2-7b"].matrices().values()
    assert round(sum(rows * columns for rows, columns in matrices) / 1e6) == 6738


def test_the_command_prints_the_table_or_json_of_what_was_measured(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "model.gguf", model[1]
    assert main(["tiny", "-o", str(path), "--json"]) == 0
    assert path.read_bytes() == model[0].read_bytes()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["synthetic"] == "tiny"
    monkeypatch.setattr("tools.synthetic.__main__.write", lambda *_, **__: written)
    assert main(["tiny", "-o", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "synthetic" in printed
    lines = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in printed.splitlines()[-7:]}
    assert list(lines) == ["0", "1", "2", "3", "least", "most", "model"]
    shares = [written.model.active, written.model.hot, *written.model.new, written.model.again]
    np.testing.assert_allclose(lines["model"], [100 * share for share in shares], atol=0.051)
    assert lines["least"][0] == min(lines[layer][0] for layer in "0123")
    assert lines["most"][7] == max(lines[layer][7] for layer in "0123")
    assert found["model"]["active"] == written.model.active
    assert found["layers"][3]["new"] == list(written.layers[3].new)


def test_a_place_that_does_not_exist_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny", "-o", str(tmp_path / "none" / "model.gguf")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "does not exist; make it first" in said


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "make_layer", full)
    with pytest.raises(EdgeError, match=r"model\.gguf: the file cannot be written \(No space"):
        writer.write(tmp_path / "model.gguf", TINY, name="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [["--active", "0.9"], ["--seed", "-1"], ["--active", "nan"]])
def test_numbers_that_make_no_model_are_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["tiny", "-o", str(tmp_path / "model.gguf"), *wrong])
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []

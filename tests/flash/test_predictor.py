"""Predictors: what they learn where the answer is known, how they are measured, and their file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.cli.app import main
from edgellm.errors import EdgeError
from edgellm.flash import predictor
from edgellm.flash.predictor import Trained, Weights, gradients, read_facts, train
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge import Bundle, open_edge
from edgellm.formats.edge_pack import pack
from edgellm.formats.slots import SlotLayout
from tests.e2e.tiny_model import write_tiny_gguf

BOOK = (Path(__file__).parents[1] / "data" / "alice.txt").read_text()[2000:7000]
LAYERS, NEURONS, HIDDEN, CHUNK = 2, 256, 64, 128
SHARE = 0.05  # of the neurons that fire in the model below


class Known:
    """A model in which who fires is a matrix of rank 4 times the inputs, above a threshold."""

    def __init__(self, chunks: int, activation: str = "relu"):
        rng = np.random.default_rng(3)
        self.chunks = [[0] * CHUNK for _ in range(chunks)]
        self.scales = np.exp(rng.normal(size=(LAYERS, HIDDEN)))  # of the channels
        self.inputs = (
            rng.normal(size=(chunks, LAYERS, CHUNK, HIDDEN)).astype(np.float32) * self.scales[:, None]
        )
        low = rng.normal(size=(LAYERS, NEURONS, 4)), rng.normal(size=(LAYERS, 4, HIDDEN)) / 8
        self.gates = np.einsum("lnr,lrh,clth->cltn", *low, self.inputs / self.scales[:, None])
        self.limit = np.quantile(self.gates, 1 - SHARE)
        if activation == "relu":
            self.gates -= self.limit
        config = SimpleNamespace(
            activation_threshold=0.0,
            n_layers=LAYERS,
            ffn_size=NEURONS,
            hidden_size=HIDDEN,
            activation=activation,
            context_length=CHUNK,
        )
        self.checkpoint: Any = SimpleNamespace(path=Path("known.gguf"), config=config, files=())
        layout = SlotLayout(LAYERS, NEURONS, HIDDEN, {"up": "q8_0", "down": "q8_0"}, 512, 4)
        manifest = {
            "source": {"name": "known.gguf", "files": []},
            "parts": {"neurons.safetensors": {"sha256": "1"}},
        }
        self.order = np.stack([np.random.default_rng(i).permutation(NEURONS) for i in range(LAYERS)])
        self.bundle = Bundle(Path("known.edge"), manifest, layout, "sparse-exact", self.order)

    def watch(self, checkpoint: Any, chunks: Any, threads: int, see: Any, report: Any) -> None:
        """In the place of calibrate.watch."""
        for i in range(len(chunks)):
            for layer in range(LAYERS):
                see(layer, self.inputs[i, layer].astype(np.float32), self.gates[i, layer].astype(np.float32))
            report((i + 1) * CHUNK)

    def figures(self, trained: Trained, fired: np.ndarray, layer: int) -> tuple[float, float, float, float]:
        """Shares that fire and are predicted, recall, and precision, in float64, of the last chunks."""
        count = trained.held_out // CHUNK
        inputs = self.inputs[-count:, layer].reshape(-1, HIDDEN).astype(np.float64)
        wanted = fired[-count:, layer].reshape(-1, NEURONS)[:, self.order[layer]]
        down, up, bias = (part.astype(np.float64) for part in trained.weights[layer])
        hidden = np.einsum("th,rh->tr", inputs, down)
        hidden[hidden < 0] = 0
        found = 1 / (1 + np.exp(-(np.einsum("tr,nr->tn", hidden, up) + bias))) > 0.5
        return wanted.mean(), found.mean(), found[wanted].mean(), wanted[found].mean()


def trained_on(known: Known, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Trained:
    monkeypatch.setattr(predictor, "watch", known.watch)
    return train(known.checkpoint, known.bundle, known.chunks, 1, **{"rank": 32, "epochs": 12, **options})


# -- learning


def test_gradients_are_differences_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    weights = Weights(rng.normal(size=(3, 5)), rng.normal(size=(7, 3)), rng.normal(size=7))
    inputs, fired = rng.normal(size=(4, 5)), rng.random((4, 7)) < 0.3

    def loss() -> float:
        scores = np.maximum(inputs @ weights.down.T, 0) @ weights.up.T + weights.bias
        chance = 1 / (1 + np.exp(-scores))
        return -float(np.where(fired, 3.0 * np.log(chance), 0.7 * np.log(1 - chance)).sum()) / len(inputs)

    found = gradients(weights, inputs, fired, 3.0, 0.7)
    for part, slopes in zip(weights, found, strict=True):
        for place in np.ndindex(part.shape):
            kept = part[place]
            values = []
            for step in (1e-6, -1e-6):
                part[place] = kept + step
                values.append(loss())
            part[place] = kept
            assert slopes[place] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_both_classes_count_the_same() -> None:
    """Where nothing is known the pulls of those that fire and of the others cancel out."""
    fired = np.random.default_rng(1).random((50, 40)) < 0.1
    nothing = Weights(np.zeros((2, 3)), np.zeros((40, 2)), np.zeros(40))
    share = fired.mean()
    found = gradients(nothing, np.ones((50, 3)), fired, 0.5 / share, 0.5 / (1 - share))
    assert abs(found.bias).max() > 0.01
    assert found.bias.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_low_rank_of_neurons_is_learnt(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(32, activation)
    fired = known.gates > 0
    if activation == "silu":
        magnitudes = abs(known.gates / (1 + np.exp(-known.gates)))
        limits = tuple(float(np.quantile(magnitudes[:, layer], 1 - SHARE)) for layer in range(LAYERS))
        fired = magnitudes > np.array(limits)[:, None, None]
        bundle = known.bundle
        known.bundle = Bundle(
            bundle.path, bundle.manifest, bundle.layout, "sparse-threshold", known.order, thresholds=limits
        )
    told: list[tuple[int, int]] = []
    trained = trained_on(known, monkeypatch, progress=lambda *now: told.append(now))
    assert (trained.tokens, trained.held_out) == (27 * CHUNK, 5 * CHUNK)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    for layer, one in enumerate(trained.figures):
        assert one.recall is not None
        assert one.precision is not None
        assert one.recall > 0.9
        assert one.precision > 0.3
        assert one.fires < one.predicted < 3 * SHARE
        wanted = known.figures(trained, fired, layer)
        assert (one.fires, one.predicted, one.recall, one.precision) == pytest.approx(wanted, rel=2e-3)
    for weights in trained.weights:
        assert [part.dtype for part in weights] == [np.float16, np.float16, np.float32]
        assert [part.shape for part in weights] == [(32, HIDDEN), (NEURONS, 32), (NEURONS,)]


def test_the_same_seed_learns_the_same_and_another_one_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, same, other = (
        trained_on(Known(4), monkeypatch, epochs=1, rank=4, seed=seed).weights[1].up for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_text_larger_than_the_limit_is_learnt_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    known, parts = Known(32), []
    learn = predictor._Layer.learn

    def counted(layer: predictor._Layer) -> None:
        parts.append(sum(map(len, layer._inputs)))
        learn(layer)
        assert not layer._inputs

    monkeypatch.setattr(predictor._Layer, "learn", counted)
    each = 2 * HIDDEN + NEURONS // 8
    monkeypatch.setattr(predictor, "MOST_BYTES", LAYERS * each * 10 * CHUNK + 5)
    trained = trained_on(known, monkeypatch)
    assert parts == [10 * CHUNK, 10 * CHUNK, 10 * CHUNK, 10 * CHUNK, 7 * CHUNK, 7 * CHUNK]
    assert min(one.recall or 0 for one in trained.figures) > 0.9


def test_layers_in_which_nobody_fires_have_no_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(4)
    known.gates[:] = -1
    for one in trained_on(known, monkeypatch).figures:
        assert (one.fires, one.predicted, one.recall, one.precision) == (0, 0, None, None)


@pytest.mark.parametrize(
    ("change", "options", "phrase"),
    [
        (lambda k: k.chunks.__delitem__(slice(1, None)), {}, "One chunk"),
        (lambda k: None, {"rank": HIDDEN + 1}, "rank is 65; it must be from 1 to 64"),
        (lambda k: setattr(k.checkpoint, "path", Path("other.gguf")), {}, "was packed from 'known.gguf'"),
        (lambda k: setattr(k.checkpoint.config, "n_layers", 3), {}, "was packed from 'known.gguf'"),
        (lambda k: k.bundle.manifest.update(source=None), {}, "was packed from 'None'"),
        (lambda k: k.inputs.fill(np.nan), {}, "not finite numbers"),
    ],
)
def test_what_cannot_be_learnt(
    change: Callable[[Known], Any], options: dict[str, Any], phrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(4)
    change(known)
    with pytest.raises(EdgeError, match=phrase):
        trained_on(known, monkeypatch, **options)


# -- the command, on the model that ships


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(BOOK)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shipped: Path, book: Path) -> Path:
    """A bundle with a predictor, neurons in another order."""
    out: Path = tmp_path_factory.mktemp("bundles") / "tiny.edge"
    order = np.stack([np.random.default_rng(i).permutation(1024) for i in range(8)])
    pack(open_checkpoint(shipped), out, mode="sparse-exact", order=order)
    assert main([*command(out, shipped, book), "--rank", "32"]) == 0
    return out


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "tiny.edge"))


def command(bundle: Path, model: Path, text: Path) -> list[str]:
    return ["predictor", "train", str(bundle), "--model", str(model), "--text", str(text), "--threads", "1"]


def test_the_predictor_becomes_tensors(whole: Path) -> None:
    opened, stored = open_checkpoint(whole), load_file(whole / "predictor.safetensors")
    assert len(stored) == 3 * 8
    for layer in range(8):
        for name, part, kind, shape in [
            ("down.weight", "down", "F16", (32, 256)),
            ("up.weight", "up", "F16", (1024, 32)),
            ("up.bias", "bias", "F32", (1024,)),
        ]:
            tensor = opened.tensors[f"blk.{layer}.ffn_predictor_{name}"]
            assert (tensor.name, tensor.type, tensor.shape) == (
                f"blk.{layer}.ffn_predictor_{name}",
                kind,
                shape,
            )
            assert not tensor.data.flags.writeable  # mapped
            wanted = stored[f"blk.{layer}.predictor_{part}"]
            np.testing.assert_array_equal(tensor.dequantize(), wanted.astype(np.float32))
    assert "predictor.safetensors" in {Path(file.path).name for file in opened.files}
    assert not [name for name in open_edge(whole, predictor=False).tensors if "predictor" in name]


def test_it_is_right_about_the_bundles_neurons(whole: Path, shipped: Path, book: Path) -> None:
    """On the part that was held out, by the reference executor's way: gates from weights, in float32."""
    from edgellm.flash.calibrate import watch
    from edgellm.formats.types import dequantize

    source, opened = open_checkpoint(shipped), open_checkpoint(whole)
    facts = read_facts(whole / "predictor.safetensors")
    assert (facts["text"], facts["rank"]) == ("book.txt", 32)
    chunks = predictor.chunks_of(source, BOOK)
    assert facts["tokens"] + facts["held_out_tokens"] == sum(map(len, chunks))
    held_out = [chunk for i, chunk in enumerate(chunks) if sum(map(len, chunks[:i])) >= facts["tokens"]]
    seen: list[np.ndarray] = []

    def see(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
        if layer == 5:
            seen.append(inputs.copy())

    watch(source, held_out, 1, see, lambda done: None)
    inputs = np.concatenate(seen)
    assert len(inputs) == facts["held_out_tokens"]
    gate = opened.tensors["blk.5.ffn_gate.weight"]  # in the bundle's order
    fired = inputs @ dequantize(gate.data, gate.type).T > 0
    stored = load_file(whole / "predictor.safetensors")
    down, up, bias = (stored[f"blk.5.predictor_{part}"].astype(np.float32) for part in ("down", "up", "bias"))
    found = np.maximum(inputs @ down.T, 0) @ up.T + bias > 0
    figures = facts["layers"][5]
    assert figures.pop("perplexity") > 1
    wanted = {
        "fires": fired.mean(),
        "predicted": found.mean(),
        "recall": found[fired].mean(),
        "precision": fired[found].mean(),
    }
    assert figures == pytest.approx(wanted, abs=0.01)  # the model rounds inputs to 8 bits
    assert figures["recall"] > figures["predicted"] + 0.1  # which is what guesses would find


def test_json_and_the_table(whole: Path, shipped: Path, book: Path, bundle: Path, capsys: Any) -> None:
    assert main([*command(bundle, shipped, book), "--rank", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    path = bundle / "predictor.safetensors"
    assert (found["path"], found["bytes"], found["rank"]) == (str(path), path.stat().st_size, 8)
    assert found["layers"] == read_facts(path)["layers"]
    assert {one.name for one in bundle.iterdir()} == {one.name for one in whole.iterdir()}
    assert main([*command(bundle, shipped, book), "--rank", "8"]) == 0
    output = capsys.readouterr()
    rows = [line.split() for line in output.out.splitlines()]
    assert rows[0] == ["layer", "fire", "predicted", "recall", "precision", "perplexity"]
    shares = found["layers"][7]
    columns = [f"{shares[key]:.1%}" for key in ("fires", "predicted", "recall", "precision")]
    assert rows[8] == ["7", *columns, f"{shares['perplexity']:.3f}"]
    cost = found["perplexity"]
    assert cost["tokens"] > 0
    assert cost["without"] != cost["all_layers"]
    assert f"Perplexity on {cost['tokens']} of the tokens held out: {cost['without']:.2f} as" in output.err
    assert f"Trained on {found['tokens']} tokens, compared on {found['held_out_tokens']} others" in output.err


def test_wrong_usage_is_one_sentence(
    bundle: Path, shipped: Path, book: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time")
    other, stream = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "stream.edge"
    pack(open_checkpoint(other), stream, mode="stream")
    for arguments, phrase in [
        (command(bundle, other, book), "tiny.edge: this was packed from 'tiny.gguf', and "),
        (command(bundle, bundle, book), "this is a bundle; give the model that it was packed from"),
        (command(stream, other, book), "the mode is stream"),
        (command(shipped, shipped, book), "this is a file and no bundle"),
        (command(bundle, shipped, tmp_path / "none.txt"), "none.txt: cannot be read"),
        (command(bundle, shipped, tmp_path / "short.txt"), "too few to learn from who fires"),
        ([*command(bundle, shipped, book), "--rank", "257"], "it must be from 1 to 256"),
        (command(bundle, shipped, book)[:-4], "--text"),
    ]:
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert phrase in output.err
        assert output.err.count("\n") == 1
        assert output.out == ""


# -- the file


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "predictor.safetensors"
    arrays, facts = load_file(path), read_facts(path)
    change(arrays)
    save_file(arrays, path, {"facts": json.dumps(facts)})


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda a: a.pop("blk.3.predictor_up"), "blk.3.predictor_up is missing"),
        (lambda a: a.update(x=np.zeros(3)), "x is not part of it"),
        (
            lambda a: a.update({"blk.3.predictor_up": np.zeros((1024, 16), np.float16)}),
            r"blk.3.predictor_up is F16 of shape \(1024, 16\), not F16 of \(1024, 32\)",
        ),
        (
            lambda a: a.update({"blk.0.predictor_down": np.zeros((32, 256), np.float32)}),
            "blk.0.predictor_down is F32 of shape",
        ),
        (
            lambda a: a.update({"blk.7.predictor_bias": np.full(1024, np.nan, np.float32)}),
            "blk.7.predictor_bias holds values that are not finite",
        ),
    ],
)
def test_damage_is_one_sentence(bundle: Path, change: Callable[[Any], Any], phrase: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(EdgeError, match=phrase) as error:
        open_checkpoint(bundle)
    assert "predictor.safetensors: " in str(error.value)
    assert open_edge(bundle, predictor=False).bundle is not None


def test_a_damaged_file_is_replaced_by_training(bundle: Path, shipped: Path, book: Path) -> None:
    path = bundle / "predictor.safetensors"
    for content in (path.read_bytes()[:1000], b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(EdgeError, match=r"predictor\.safetensors: "):
            open_checkpoint(bundle)
    assert main([*command(bundle, shipped, book), "--rank", "4"]) == 0
    assert open_checkpoint(bundle).tensors["blk.0.ffn_predictor_down.weight"].shape == (4, 256)


def test_a_file_without_facts_or_of_another_order_is_refused(
    bundle: Path, shipped: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.edge"
    pack(open_checkpoint(shipped), other, mode="sparse-exact")
    shutil.copy(bundle / "predictor.safetensors", other)
    with pytest.raises(EdgeError, match="it was trained for another bundle"):
        open_checkpoint(other)
    arrays = load_file(bundle / "predictor.safetensors")
    for metadata in (None, {"facts": "{"}, {"facts": "[]"}):
        save_file(arrays, bundle / "predictor.safetensors", metadata)
        with pytest.raises(EdgeError, match="does not say what it was trained on"):
            open_checkpoint(bundle)

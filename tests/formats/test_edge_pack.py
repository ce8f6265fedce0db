"""Packing: every codec against a decoding by hand, the same logits, and bundles that appear whole or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats import edge_pack, edge_work
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.formats.edge_neurons import Matrix, column_vectors, row_vectors
from edgellm.formats.edge_pack import Packed, pack
from edgellm.formats.edge_verify import verify
from edgellm.formats.slots import UNIT, Codec, decode
from edgellm.formats.tensor import Tensor
from edgellm.models import build_program
from tests.formats.relu_model import HIDDEN, q4_0, write_relu, write_small
from tests.formats.slots_by_hand import bundle_weights, source_weights
from tests.formats.tiny import FFN, LAYERS
from tests.formats.tiny_bitnet import add_tokenizer, write_bitnet
from tools.random_model import write as random_model
from tools.random_model.shapes import SHAPES

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
GOLDENS = Path(__file__).parents[1] / "models" / "goldens"
TINY = SHAPES["tiny"]
THRESHOLDS = {"mode": "sparse-threshold", "thresholds": [0.0] * TINY.layers}  # of models with SiLU


def logits(checkpoint: Checkpoint) -> np.ndarray:
    program = build_program(checkpoint, context=len(TOKENS))
    return ReferenceExecutor(program, checkpoint).new_session(len(TOKENS)).forward(TOKENS, all_logits=True)


def packed(source: Path, out: Path, **options: Any) -> Packed:
    return pack(open_checkpoint(source), out, **options)


def shuffled(layers: int, neurons: int) -> np.ndarray:
    return np.stack([np.random.default_rng(layer).permutation(neurons) for layer in range(layers)])


def overwrite(path: Path, tensor: str, at: int, content: bytes) -> None:
    """Change some bytes of a tensor in a GGUF file."""
    offset = next(t.data_offset for t in gguf.GGUFReader(path).tensors if t.name == tensor)
    with path.open("r+b") as file:
        file.seek(int(offset) + at)
        file.write(content)


@pytest.fixture
def relu(write_gguf: Callable[..., Path]) -> Path:
    return write_relu(write_gguf)


@pytest.fixture(scope="module", params=["Q4_0", "Q8_0", "TQ1_0", "TQ2_0", "F16", "Q4_1"])
def random(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("random") / "model.gguf"
    random_model.write(path, TINY, request.param)
    return path, request.param


# -- weights


@pytest.mark.parametrize("ordered", [False, True])
def test_every_type_decodes_to_the_sources_weights(
    random: tuple[Path, str], ordered: bool, tmp_path: Path
) -> None:
    source, kind = random
    order = shuffled(TINY.layers, TINY.ffn) if ordered else None
    done = packed(source, tmp_path / "m.edge", order=order, gate_in_slots=True, **THRESHOLDS)
    wanted, found = source_weights(source), bundle_weights(tmp_path / "m.edge")
    opened = open_checkpoint(tmp_path / "m.edge")
    ternary = kind.startswith("TQ")
    down = "t2" if ternary else "q4_0" if kind.startswith("Q4") else "q8_0"
    rows = {"Q4_0": "q4_0", "Q8_0": "q8_0"}.get(kind, "t2" if ternary else "q8_0")
    assert done.layout is not None
    assert done.layout.codecs == {"up": rows, "down": down, "gate": rows}
    for role in ("up", "down", "gate"):
        lost = done.loss[role]
        exact = ternary or (role != "down" and kind in ("Q4_0", "Q8_0"))
        assert lost["lossless"] == exact
        errors, squares = [], []
        for layer in range(TINY.layers):
            name = f"blk.{layer}.ffn_{role}.weight"
            weights = wanted[name]
            if order is not None:
                weights = weights[:, order[layer]] if role == "down" else weights[order[layer]]
            if role != "gate":  # which is a tensor of resident.gguf too, as it was
                np.testing.assert_array_equal(opened.tensors[name].dequantize(), found[name])
            if exact:
                np.testing.assert_array_equal(found[name], weights)
            errors.append(np.sum((found[name].astype(np.float64) - weights) ** 2))
            squares.append(np.sum(weights.astype(np.float64) ** 2))
        assert lost["relative_rms"] == pytest.approx(np.sqrt(sum(errors) / sum(squares)), rel=1e-3, abs=0)
        relative = np.sqrt(np.array(errors) / squares)
        assert lost["worst_relative_rms"] == pytest.approx(relative.max(), rel=1e-3, abs=0)
        assert lost["worst_layer"] == relative.argmax()
        assert relative.max() < (0.1 if down == "q4_0" and role == "down" else 0.01)


def test_columns_whose_blocks_share_a_scale_are_kept_exactly(relu: Path, tmp_path: Path) -> None:
    wanted = source_weights(relu)
    order = shuffled(LAYERS, FFN)
    for down in ("auto", "q8_0"):
        done = packed(relu, tmp_path / f"{down}.edge", mode="sparse-exact", order=order, down=down)
        assert done.loss["down"]["lossless"]
        found = bundle_weights(tmp_path / f"{down}.edge")
        for layer in range(LAYERS):
            name = f"blk.{layer}.ffn_down.weight"
            np.testing.assert_array_equal(found[name], wanted[name][:, order[layer]])


def test_more_bits_for_columns_lose_less(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    random_model.write(source, TINY, "Q4_0")
    losses = [
        packed(source, tmp_path / f"{down}.edge", down=down, **THRESHOLDS).loss["down"]["relative_rms"]
        for down in ("auto", "q4_0", "q8_0")
    ]
    assert losses[0] == losses[1] > 10 * losses[2] > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["q4_0", "q8_0", "t2"]), st.integers(0, 99))
def test_columns_and_rows_of_any_shape_are_exact(hidden: int, blocks: int, codec: Codec, seed: int) -> None:
    """hidden in units of 64, neurons in blocks of the source's type."""
    rng = np.random.default_rng(seed)
    hidden *= UNIT
    neurons = blocks * (256 if codec == "t2" else 32)
    order = rng.permutation(neurons)

    def matrix(rows: int, columns: int) -> tuple[Matrix, np.ndarray]:
        if codec == "t2":
            signs = rng.integers(-1, 2, (rows, columns)).astype(np.float32)
            signs *= np.exp2(rng.integers(-3, 3, (rows, 1)))
            data, kind = gguf.quants.quantize(signs, gguf.GGMLQuantizationType.TQ2_0), "TQ2_0"
        else:
            data, kind = q4_0(seed, rows, columns, 0.25)
        tensor = Tensor("x", kind, (rows, columns), data)
        return Matrix(Path("x"), tensor, np.float32(0.5)), tensor.dequantize() * np.float32(0.5)

    down, wanted = matrix(hidden, neurons)
    vectors, scale, loss = column_vectors(down, codec, order)
    values = decode(vectors, "down", codec).T
    np.testing.assert_array_equal(values if scale is None else values * scale[:, None], wanted[:, order])
    assert loss.error == 0
    up, wanted = matrix(neurons, 256 * blocks if codec == "t2" else hidden)
    vectors, loss = row_vectors(up, "up", codec, order)
    if codec == "t2":
        np.testing.assert_array_equal(decode(vectors, "up", codec), wanted[order])


def test_a_row_with_two_scales_is_not_packed_as_ternary(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    random_model.write(path, SHAPES["tiny"], "TQ2_0")
    overwrite(path, "blk.1.ffn_down.weight", 64, np.array([0.75], "<f2").tobytes())  # behind 256 codes
    done = packed(path, tmp_path / "m.edge", down="auto", **THRESHOLDS)
    assert done.layout is not None
    assert done.layout.codecs == {"up": "t2", "down": "q4_0"}
    done = packed(path, tmp_path / "n.edge", down="q8_0", **THRESHOLDS)
    assert 0 < done.loss["down"]["relative_rms"] < 0.02  # the outlier has its blocks' codes for itself


def test_codes_that_are_no_trits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    random_model.write(path, SHAPES["tiny"], "TQ2_0")
    overwrite(path, "blk.1.ffn_up.weight", 7, b"\xff")
    with pytest.raises(EdgeError, match=r"blk\.1\.ffn_up\.weight holds values other than -1, 0 and 1"):
        packed(path, tmp_path / "m.edge", **THRESHOLDS)
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_values_that_are_not_finite_are_refused(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    down = np.ones((HIDDEN, FFN), np.float32)
    down[3, 5] = np.inf
    source = write_small(write_gguf, "relu", {"blk.1.ffn_down.weight": down})
    with pytest.raises(EdgeError, match=r"blk\.1\.ffn_down\.weight holds values that are not finite"):
        packed(source, tmp_path / "m.edge", mode="sparse-exact")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


# -- models


def test_the_shipped_models_logits_are_the_same(shipped: Path, tmp_path: Path) -> None:
    done = packed(shipped, tmp_path / "m.edge", mode="sparse-exact")
    assert all(facts["lossless"] for facts in done.loss.values())
    opened = open_checkpoint(tmp_path / "m.edge")
    assert "blk.0.ffn_up.scale" not in opened.tensors
    np.testing.assert_array_equal(logits(opened), logits(open_checkpoint(shipped)))


def test_logits_are_the_same_in_any_order_of_neurons(relu: Path, tmp_path: Path) -> None:
    wanted = logits(open_checkpoint(relu))
    packed(relu, tmp_path / "a.edge", mode="sparse-exact")
    np.testing.assert_array_equal(logits(open_checkpoint(tmp_path / "a.edge")), wanted)
    order = shuffled(LAYERS, FFN)
    frequency = np.random.default_rng(0).random((LAYERS, FFN), np.float32)
    packed(relu, tmp_path / "b.edge", mode="sparse-exact", order=order, frequency=frequency)
    opened = open_checkpoint(tmp_path / "b.edge")
    np.testing.assert_allclose(logits(opened), wanted, atol=1e-4)
    assert opened.bundle is not None
    np.testing.assert_array_equal(opened.bundle.order, order)
    np.testing.assert_array_equal(opened.bundle.frequency, np.take_along_axis(frequency, order, axis=1))


def test_norms_and_biases_of_neurons_follow_their_order(shipped: Path, tmp_path: Path) -> None:
    source = open_checkpoint(shipped)
    order = shuffled(source.config.n_layers, source.config.ffn_size)
    packed(shipped, tmp_path / "m.edge", mode="sparse-exact", order=order)
    opened = open_checkpoint(tmp_path / "m.edge")
    for name in ("ffn_gate.weight", "ffn_sub_norm.weight"):
        found, wanted = (c.tensors[f"blk.3.{name}"].data for c in (opened, source))
        each = -1 if name.startswith("ffn_gate") else 4
        wanted = wanted.reshape(source.config.ffn_size, each)[order[3]]
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("form", ["packed", "master"])
def test_a_hugging_face_bitnet(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "model"
    vocab = add_tokenizer(folder, "llama-spm")
    write_bitnet(folder, form, vocab=vocab, config={"hidden_act": "relu2"})
    from edgellm.text.template import find_template
    from edgellm.text.to_gguf import tokenizer_keys
    from edgellm.text.tokenizer import load_tokenizer

    source = open_checkpoint(folder)
    done = pack(source, tmp_path / "m.edge", mode="sparse-exact", tokenizer=tokenizer_keys(source))
    assert done.layout is not None
    assert done.layout.codecs == {"up": "t2", "down": "t2"}
    opened = open_checkpoint(tmp_path / "m.edge")
    np.testing.assert_array_equal(logits(opened), logits(source))
    assert opened.tensors["output_norm.weight"].type == "F32"
    assert load_tokenizer(opened).encode("one two three") == load_tokenizer(source).encode("one two three")
    assert find_template(opened) == find_template(source)
    pack(source, tmp_path / "n.edge", mode="sparse-exact")
    with pytest.raises(EdgeError, match=r"n\.edge: the file holds no tokenizer"):
        load_tokenizer(open_checkpoint(tmp_path / "n.edge"))


@pytest.mark.parametrize(("name", "base"), [("opt", "opt"), ("opt-post-norm", None), ("llama-relu", None)])
def test_folders_that_gguf_has_no_keys_for(tmp_path: Path, name: str, base: str | None) -> None:
    """OPT has no gate: its up tells who fires and stays a tensor."""
    from tests.models.test_goldens import BASES

    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(GOLDENS / name / "config.json", folder)
    shutil.copy(GOLDENS / BASES.get(name, base or name) / "model.safetensors", folder)
    source = open_checkpoint(folder)
    order = shuffled(source.config.n_layers, source.config.ffn_size)
    done = pack(source, tmp_path / "m.edge", mode="sparse-exact", order=order)
    opened = open_checkpoint(tmp_path / "m.edge")
    assert opened.config == source.config
    assert done.layout is not None
    assert set(done.layout.codecs) == ({"down"} if name.startswith("opt") else {"up", "down"})
    assert 0 < done.loss["down"]["relative_rms"] < 0.01
    wanted = logits(source)
    assert np.abs(logits(opened) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_stream_keeps_every_tensor(random: tuple[Path, str], tmp_path: Path) -> None:
    done = packed(random[0], tmp_path / "m.edge", mode="stream")
    assert done.layout is None
    opened, source = open_checkpoint(tmp_path / "m.edge"), open_checkpoint(random[0])
    assert sorted(p.name for p in (tmp_path / "m.edge").iterdir()) == ["manifest.json", "resident.gguf"]
    assert {n: (t.type, t.data.tobytes()) for n, t in opened.tensors.items()} == {
        n: (t.type, t.data.tobytes()) for n, t in source.tensors.items()
    }
    assert opened.config == source.config


# -- what does not fit


def test_what_cannot_be_packed_is_refused(
    write_gguf: Callable[..., Path], relu: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(relu)
    silu = open_checkpoint(write_gguf(name="silu.gguf"))
    fused = open_checkpoint(write_gguf("phi3", name="phi3.gguf"))
    out = tmp_path / "m.edge"
    zeros = np.zeros((LAYERS, FFN), np.int64)
    for checkpoint, options, phrase in [
        (silu, {"mode": "sparse-exact"}, "its activation is silu"),
        (fused, {"mode": "sparse-threshold", "thresholds": [0.0] * LAYERS}, "gate and up are one matrix"),
        (source, {"mode": "dense"}, "cannot be packed as dense"),
        (source, {"mode": "sparse-exact", "down": "q6_k"}, "Columns cannot be packed in q6_k"),
        (source, {"mode": "sparse-exact", "thresholds": [0.0] * LAYERS}, "thresholds are needed for"),
        (source, {"mode": "sparse-threshold"}, "thresholds are needed for"),
        (source, {"mode": "sparse-threshold", "thresholds": [np.nan] * LAYERS}, "a finite threshold"),
        (source, {"mode": "sparse-exact", "order": zeros}, "does not name each of them once"),
        (source, {"mode": "sparse-exact", "order": zeros[:, 1:]}, "order of neurons are for"),
        (source, {"mode": "stream", "order": zeros}, "order of neurons are for"),
        (source, {"mode": "sparse-exact", "alignment": 768}, "no power of two"),
    ]:
        with pytest.raises(EdgeError, match=phrase):
            pack(checkpoint, out, **options)
    packed(relu, out, mode="sparse-exact")
    with pytest.raises(EdgeError, match="this is a bundle already"):
        packed(out, tmp_path / "n.edge", mode="sparse-exact")
    assert not list(tmp_path.glob("*.packing"))


@pytest.mark.parametrize("hidden", [32, 48, 96])
def test_a_hidden_size_that_is_no_multiple_of_64_is_refused(
    write_gguf: Callable[..., Path], tmp_path: Path, hidden: int
) -> None:
    source = open_checkpoint(write_gguf(keys={"hidden_activation": "relu"}))
    source.config.hidden_size = hidden
    with pytest.raises(EdgeError, match=f"the hidden size is {hidden}, not a multiple of 64.*--mode stream"):
        pack(source, tmp_path / "m.edge", mode="sparse-exact")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
    pack(source, tmp_path / "m.edge", mode="stream")


def test_places_where_nothing_is_written(relu: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="does not exist"):
        packed(relu, tmp_path / "no" / "m.edge", mode="stream")
    (tmp_path / "file.edge").touch()
    with pytest.raises(EdgeError, match="no bundle"):
        packed(relu, tmp_path / "file.edge", mode="stream", force=True)
    packed(relu, tmp_path / "m.edge", mode="stream")
    with pytest.raises(EdgeError, match="--force"):
        packed(relu, tmp_path / "m.edge", mode="sparse-exact")
    packed(relu, tmp_path / "m.edge", mode="sparse-exact", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.edge", "m.edge", "tiny.gguf"]
    assert verify(tmp_path / "m.edge") == []


def test_too_small_a_disk_is_told_before_writing(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_work.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(EdgeError, match=r"has only 1\.0 kB free"):
        packed(relu, tmp_path / "m.edge", mode="sparse-exact")
    assert [p.name for p in tmp_path.iterdir()] == [relu.name]


def test_a_source_that_changes_meanwhile_is_refused(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = edge_pack.section_sums
    monkeypatch.setattr(edge_pack, "section_sums", lambda *a: (os.utime(relu), sums(*a))[1])
    with pytest.raises(EdgeError, match="changed while it was packed"):
        packed(relu, tmp_path / "m.edge", mode="sparse-exact")
    assert [p.name for p in tmp_path.iterdir()] == [relu.name]

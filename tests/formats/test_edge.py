"""Opening and verifying bundles: whole ones, and damaged ones, which get one sentence each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from edgellm.formats.edge_verify import MOST_NAMED, verify
from tests.formats.relu_model import write_small
from tests.formats.slots_by_hand import bundle_weights
from tests.formats.tiny import write_safetensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """A bundle of the ternary model that ships, with gates in its slots."""
    out: Path = tmp_path_factory.mktemp("bundles") / "whole.edge"
    pack(open_checkpoint(shipped), out, mode="sparse-predicted", gate_in_slots=True)
    return out


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model.edge"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


# -- whole ones


def test_what_a_bundle_has_besides_tensors(whole: Path, shipped: Path) -> None:
    opened, source = open_checkpoint(whole), open_checkpoint(shipped)
    bundle = opened.bundle
    assert bundle is not None
    assert bundle.layout is not None
    assert (opened.format, opened.path, bundle.mode) == ("edge", whole, "sparse-predicted")
    assert opened.config == source.config
    layers, neurons = source.config.n_layers, source.config.ffn_size
    arrays = load_file(whole / "neurons.safetensors")
    np.testing.assert_array_equal(bundle.order, np.tile(np.arange(neurons), (layers, 1)))
    for name in ("order", "sums", "down_scale"):
        found = getattr(bundle, name)
        np.testing.assert_array_equal(found, arrays[name])
        assert found.dtype == arrays[name].dtype
        assert not found.flags.writeable  # mapped
    assert bundle.sums is not None
    assert bundle.sums.shape == (layers, bundle.layout.slots, 2)
    assert (bundle.sums != 0).all()
    assert bundle.frequency is None
    assert {Path(file.path).name for file in opened.files} == {path.name for path in whole.iterdir()}


def test_tensors_in_slots_read_the_rows_asked_for(whole: Path) -> None:
    tensors, wanted = open_checkpoint(whole).tensors, bundle_weights(whole)
    for role in ("up", "down"):
        name = f"blk.5.ffn_{role}.weight"
        tensor = tensors[name]
        assert (tensor.name, tensor.type, tensor.shape) == (name, "TQ2_0", wanted[name].shape)
        assert tensor.elements == wanted[name].size
        assert tensor.nbytes == 1024 * (68 if role == "up" else 64)
        for rows in (slice(3, 9), np.array([200, 3, 200]), slice(None, None, -50), None):
            index = slice(None) if rows is None else rows
            np.testing.assert_array_equal(tensor.dequantize(rows), wanted[name][index])
        with pytest.raises(EdgeError, match="lies in slots"):
            tensor.data  # noqa: B018


def test_what_is_no_predictor_is_refused(bundle: Path) -> None:
    save_file({"x": np.zeros(3)}, bundle / "predictor.safetensors")
    with pytest.raises(EdgeError, match=r"predictor\.safetensors: .*train the predictor again"):
        open_checkpoint(bundle)
    assert any("train the predictor again" in problem for problem in verify(bundle))


def test_thresholds_are_read(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    source = open_checkpoint(write_small(write_gguf, "silu"))
    pack(source, tmp_path / "m.edge", mode="sparse-threshold", thresholds=[0.25, 0.5])
    bundle = open_checkpoint(tmp_path / "m.edge").bundle
    assert bundle is not None
    assert bundle.thresholds == (0.25, 0.5)
    assert verify(tmp_path / "m.edge") == []


def test_only_numpy_is_imported_with_the_module() -> None:
    code = (
        "import sys, edgellm.formats.edge; "
        "print([x for x in ('gguf', 'safetensors', 'tokenizers', 'rich', 'numba') if x in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# -- manifests


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda m: m.update(edge=2), "made by a newer edgellm"),
        (lambda m: m.update(edge="1"), "edge should be a whole number"),
        (lambda m: m.pop("edge"), "edge is missing"),
        (lambda m: m.update(mode="dense"), "mode is 'dense'"),
        (lambda m: m.update(mode="stream"), "slots is given, although the mode is stream"),
        (lambda m: m.update(mode="sparse-threshold"), "thresholds is missing"),
        (lambda m: m.update(thresholds=[0.1] * 7), "one for each layer"),
        (lambda m: m.update(thresholds=[float("nan")] * 8), "finite numbers"),
        (lambda m: m.update(thresholds=["0"] * 8), "finite numbers"),
        (lambda m: m.update(slots=None), "codecs does not give"),
        (lambda m: m["slots"].update(codecs={"up": "q4_0"}), "codecs does not give"),
        (lambda m: m["slots"].update(codecs={"up": "q5_0", "down": "t2"}), "codecs does not give"),
        (lambda m: m["slots"].update(codecs=["up", "down"]), "codecs should be a dictionary"),
        (lambda m: m["slots"].update(alignment=768), "alignment is 768"),
        (lambda m: m["slots"].update(alignment=256), "alignment is 256"),
        (lambda m: m["slots"].update(per_slot=17), "per_slot is 17"),
        (lambda m: m["slots"].update(per_slot=0), "per_slot should be"),
        (lambda m: m["slots"].update(layers=10**6), "layers is 1000000"),
        (lambda m: m["slots"].update(neurons=10**30), "neurons should be a whole number"),
        (lambda m: m["slots"].update(neurons=2**31 - 1), "its slots take"),
        (lambda m: m["slots"].update(layers=7), "its slots take"),
        (lambda m: m["slots"].update(hidden=250), "hidden is 250, not a multiple of 64"),
        (lambda m: m["slots"].update(codecs={"up": "q4_0", "down": "q4_0"}, hidden=288), "hidden is 288, "),
        (lambda m: m["slots"].update(codecs={"up": "t2", "down": "q4_0", "gate": "t2"}), "its slots take"),
        (lambda m: m["slots"].pop("hidden"), "hidden is missing"),
        (lambda m: m.update(parts=[]), "parts should be a dictionary"),
        (lambda m: m["parts"].pop("ffn.bin"), "parts lacks ffn.bin"),
        (lambda m: m["parts"].update({"../x": m["parts"]["ffn.bin"]}), "not a plain file name"),
        (lambda m: m["parts"].update({"x": m["parts"]["ffn.bin"]}), "x: this part of the bundle is missing"),
        (lambda m: m["parts"]["ffn.bin"].update(bytes=-1), "no number of bytes"),
        (lambda m: m["parts"]["ffn.bin"].update(bytes=5), "bytes where 5 were packed"),
        (lambda m: m["parts"]["ffn.bin"].update(sha256="x"), "gives the part ffn.bin no sha256"),
        (lambda m: m["parts"].update({"ffn.bin": 3}), "gives the part ffn.bin no number"),
        (lambda m: m.update(activation="relu"), "its activation is 'relu'"),
        (lambda m: m.update(architecture="llama"), "its architecture is 'llama'"),
    ],
)
def test_damaged_manifests(bundle: Path, change: Callable[[dict[str, Any]], Any], phrase: str) -> None:
    edit(bundle, change)
    with pytest.raises(EdgeError, match=phrase) as raised:
        open_checkpoint(bundle)
    assert str(bundle) in str(raised.value)
    assert "\n" not in str(raised.value)
    with contextlib.suppress(EdgeError):  # what is so wrong is an error here too, or else a problem
        assert verify(bundle)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b'{"edge": 1e999}', b"[" * 100_000])
def test_manifests_that_are_none(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    for look in (open_checkpoint, verify):
        with pytest.raises(EdgeError, match=r"manifest\.json"):
            look(bundle)


def test_an_unfinished_bundle_and_a_file(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "m.edge").mkdir()
    with pytest.raises(EdgeError, match="no bundle, or packing it was not finished"):
        open_checkpoint(tmp_path / "m.edge")
    with pytest.raises(EdgeError, match="this is a file and no bundle"):
        verify(shipped)


# -- parts


@pytest.mark.parametrize("name", ["ffn.bin", "resident.gguf", "neurons.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
def test_parts_of_another_size(bundle: Path, name: str, damage: str) -> None:
    path = bundle / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (1 if damage == "longer" else -1))
    with pytest.raises(EdgeError, match=name):
        open_checkpoint(bundle)
    problems = verify(bundle)
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: ")


def test_every_truncated_resident_is_an_error(bundle: Path) -> None:
    """Even if the manifest agrees with its size."""
    path = bundle / "resident.gguf"
    for size in (0, 3, 24, 5000, path.stat().st_size // 2):
        os.truncate(path, size)
        edit(bundle, lambda m, size=size: m["parts"]["resident.gguf"].update(bytes=size))
        with pytest.raises(EdgeError, match=r"resident\.gguf"):
            open_checkpoint(bundle)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda a: a.pop("sums"), "sums is missing"),
        (lambda a: a.update(sums=a["sums"].view(np.int64)), "sums is I64"),
        (lambda a: a.update(sums=a["sums"][:, :-1]), "sums is U64 of shape"),
        (lambda a: a.update(order=a["order"].astype(np.float32)), "order is F32"),
        (lambda a: a.update(order=np.zeros_like(a["order"])), "order does not name each neuron once"),
        (lambda a: a.update(order=-a["order"]), "order does not name each neuron once"),
        (lambda a: a.pop("down_scale"), "down_scale is missing"),
        (lambda a: a.update(down_scale=a["down_scale"] * np.nan), "not finite"),
        (lambda a: a.update(frequency=np.zeros(3, np.float32)), "frequency is F32 of shape"),
    ],
)
def test_damaged_arrays_of_neurons(
    bundle: Path, change: Callable[[dict[str, np.ndarray]], Any], phrase: str
) -> None:
    path = bundle / "neurons.safetensors"
    arrays = load_file(path)
    change(arrays)
    write_safetensors(path, {name: np.ascontiguousarray(array) for name, array in arrays.items()})
    edit(bundle, lambda m: m["parts"][path.name].update(bytes=path.stat().st_size))
    with pytest.raises(EdgeError, match=phrase):
        open_checkpoint(bundle)


def test_a_superblock_of_another_bundle(bundle: Path) -> None:
    overwrite(bundle / "ffn.bin", 20, b"9")
    with pytest.raises(EdgeError, match="does not begin with the slots"):
        open_checkpoint(bundle)


def test_a_resident_of_another_model(bundle: Path, write_gguf: Callable[..., Path]) -> None:
    other = write_gguf("bitnet-b1.58")
    shutil.copy(other, bundle / "resident.gguf")
    edit(bundle, lambda m: m["parts"]["resident.gguf"].update(bytes=other.stat().st_size))
    with pytest.raises(EdgeError, match="is here, and beside this file once more"):
        open_checkpoint(bundle)


# -- verify


def test_flipped_bytes_are_found_and_named(bundle: Path) -> None:
    layout = open_checkpoint(bundle).bundle.layout  # type: ignore[union-attr]
    assert layout is not None
    assert layout.per_slot == 15
    for layer, slot, at in ((0, 0, 0), (3, 7, layout.stride - 1), (7, layout.slots - 1, 900)):
        place = layout.layer_offset(layer) + slot * layout.stride + at
        content = (bundle / "ffn.bin").read_bytes()
        overwrite(bundle / "ffn.bin", place, bytes([content[place] ^ 4]))
        last = min(slot * 15 + 14, layout.neurons - 1)
        assert verify(bundle) == [
            "ffn.bin: the content has another sha256 than the manifest says",
            f"ffn.bin: layer {layer}, neurons {slot * 15} to {last} differ from their checksum",
        ]
        overwrite(bundle / "ffn.bin", place, content[place : place + 1])
    assert verify(bundle) == []


def test_a_byte_between_layers_and_in_other_parts(bundle: Path) -> None:
    for name, at in (("ffn.bin", (2 << 20) - 5), ("resident.gguf", 100_000), ("neurons.safetensors", 900)):
        overwrite(bundle / name, at, b"\x81")
    problems = verify(bundle)
    for name in ("ffn.bin", "resident.gguf", "neurons.safetensors"):
        assert f"{name}: the content has another sha256 than the manifest says" in problems


def test_many_damaged_slots_are_counted(bundle: Path) -> None:
    overwrite(bundle / "ffn.bin", 2 << 20, bytes(100_000))
    problems = verify(bundle)
    assert len(problems) == MOST_NAMED + 2
    assert problems[-1].endswith("more slots differ from their checksums")


def test_progress_is_told(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    assert verify(whole, lambda *args: told.append(args)) == []
    assert told[-1][0] == told[-1][1] > 1 << 20

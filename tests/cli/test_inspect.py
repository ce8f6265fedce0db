from __future__ import annotations

import json

import gguf
import pytest

from edgellm.cli.inspect import plain
from edgellm.cli.output import printable
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from tests.e2e.tiny_model import LAYERS


@pytest.fixture
def found(json_of, tiny):
    return json_of("inspect", tiny)


def test_json_has_the_fields_of_the_contract(found, tiny):
    reader = gguf.GGUFReader(tiny)
    assert found["architecture"] == "llama"
    assert found["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    for tensor in reader.tensors:
        mine = tensors.pop(tensor.name)
        assert mine["type"] == tensor.tensor_type.name
        assert mine["shape"] == [int(side) for side in reversed(tensor.shape)]
        assert mine["bytes"] == tensor.n_bytes
    assert not tensors
    kinds = [op["op"] for op in found["program"]["ops"]]
    assert kinds.count("Attend") == LAYERS
    assert kinds[0] == "Embed"
    assert kinds[-1] == "Logits"


def test_every_weight_tells_its_path(found):
    paths = {tensor["name"]: tensor["path"] for tensor in found["tensors"]}
    assert "8-bit" in paths["blk.0.ffn_up.weight"]
    assert paths["output_norm.weight"] == "float32 vector"


def test_tensors_are_folded_by_kind_unless_all_are_asked_for(edgellm, tiny):
    folded = edgellm("inspect", tiny).stdout
    assert f"{LAYERS} x  blk.N.attn_q.weight" in folded
    assert "blk.1.attn_q.weight" not in folded
    assert "blk.1.attn_q.weight" in edgellm("inspect", tiny, "--tensors").stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, shipped):
    out = tmp_path_factory.mktemp("bundles") / "tiny.edge"
    pack(open_checkpoint(shipped), out, mode="sparse-predicted", down="q8_0", gate_in_slots=True)
    return out


def test_a_bundle_tells_what_is_in_slots(edgellm, json_of, bundle):
    layout = open_checkpoint(bundle).bundle.layout
    found = json_of("inspect", bundle)
    assert found["bundle"] == {
        "mode": "sparse-predicted",
        "slots": json.loads((bundle / "manifest.json").read_text())["slots"],
        "slot_bytes": layout.stride,
        "padding_share": layout.padding_share,
    }
    paths = {tensor["name"]: tensor["path"] for tensor in found["tensors"]}
    for layer in range(layout.layers):
        assert paths[f"blk.{layer}.ffn_up.weight"] == "in slots, t2, read as needed"
        assert paths[f"blk.{layer}.ffn_down.weight"] == "in slots, q8_0, read as needed"
    assert sum(str(path).startswith("in slots") for path in paths.values()) == 2 * layout.layers
    assert paths["blk.0.ffn_gate.weight"].startswith("tile16x4")
    printed = edgellm("inspect", bundle).stdout
    assert "in slots, q8_0, read as needed" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("bundle ")]
    assert line.split(maxsplit=1)[1] == (
        f"mode sparse-predicted, {layout.per_slot} neurons to a slot of {layout.stride} bytes, "
        f"{layout.padding_share:.1%} of it padding"
    )
    paths = {t["name"]: t["path"] for t in json_of("inspect", bundle, "--executor", "reference")["tensors"]}
    assert paths["blk.0.ffn_up.weight"] == "NumPy float32, dequantised from slots, t2"


def test_a_bundle_without_slots(edgellm, json_of, tiny, found, tmp_path):
    pack(open_checkpoint(tiny), tmp_path / "tiny.edge", mode="stream")
    streamed = json_of("inspect", tmp_path / "tiny.edge")
    assert streamed["tensors"] == found["tensors"]
    assert (streamed["bundle"]["mode"], streamed["bundle"]["slots"]) == ("stream", None)
    assert found["bundle"] is None
    printed = edgellm("inspect", tmp_path / "tiny.edge").stdout
    assert "bundle        mode stream, no neurons in slots\n" in printed


def test_the_program_is_listed_when_asked_for(edgellm, tiny):
    assert "blk.N.attn_q.weight\n" in edgellm("inspect", tiny, "--program").stdout.partition("\nprogram\n")[2]


def test_nothing_is_compiled_or_packed(edgellm, environment, tiny, tmp_path):
    process = edgellm("inspect", tiny, env={**environment, "EDGELLM_CACHE": str(tmp_path / "cache")})
    assert process.returncode == 0
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_is_one_sentence(edgellm, sentence, tmp_path):
    assert "no such model file" in sentence(edgellm("inspect", tmp_path / "missing.gguf"))


def test_metadata_becomes_plain_json():
    value = {1: float("nan"), "list": list(range(1000)), "bytes": b"\x00", "nested": {"a": (1, 2.5)}}
    assert plain(value) == {
        "1": "nan",
        "list": "1000 values",
        "bytes": "b'\\x00'",
        "nested": {"a": [1, 2.5]},
    }


def test_text_from_a_file_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\u202e") == "a?[2Jb?"

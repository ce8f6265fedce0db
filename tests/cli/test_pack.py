from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgellm import load
from edgellm.cli.app import main
from edgellm.formats.checkpoint import open_checkpoint
from tests.formats.tiny_bitnet import add_tokenizer, write_bitnet


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, shipped) -> Path:
    """The ternary model that ships, packed."""
    out = tmp_path_factory.mktemp("bundles") / "tiny.edge"
    assert main(["pack", "tiny", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def stream(tmp_path_factory, tiny) -> Path:
    """A model with SiLU, packed without slots."""
    out = tmp_path_factory.mktemp("bundles") / "stream.edge"
    assert main(["pack", str(tiny), str(out)]) == 0
    return out


def test_a_model_with_relu_is_packed_for_sparse_runs(edgellm, tmp_path):
    process = edgellm("pack", "tiny", "out.edge", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    first, slots, up, down = process.stdout.splitlines()
    assert first.startswith("out.edge: ")
    assert first.endswith("mode sparse-exact")
    assert "8 layers of 1024 neurons, 11 to a slot of 1536 bytes, 5.5% of it padding" in slots
    assert (up.split()[:2], down.split()[:2]) == (["up", "t2"], ["down", "t2"])
    assert up.endswith("as in the model")
    process = edgellm("verify", "out.edge", cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "out.edge: whole\n", "")


def test_a_model_without_relu_is_packed_for_streaming_and_told_why(edgellm, tiny, tmp_path):
    process = edgellm("pack", tiny, tmp_path / "out.edge")
    assert process.returncode == 0
    assert "activation silu" in process.stderr
    assert process.stdout.endswith("mode stream\n")
    assert open_checkpoint(tmp_path / "out.edge").metadata["general.name"] == "tiny"


@pytest.mark.parametrize("executor", ["native", "reference"])
def test_a_bundle_generates_what_the_model_does(bundle, shipped, executor):
    prompt, found = "Once upon a time there was a", []
    for path in (bundle, shipped):
        with load(path, executor=executor, threads=2) as model:
            assert isinstance(model.tokenizer.encode(prompt)[0], int)
            found.append(model.generate(prompt, max_tokens=24, temperature=0.0))
    assert len(found[0].tokens) > 8
    assert (found[0].tokens, found[0].text) == (found[1].tokens, found[1].text)


def test_a_bundle_runs(edgellm, json_of, bundle):
    options = ["-n", "8", "--temp", "0"]
    wanted = json_of("run", "-m", "tiny", "Once upon a time", *options)
    assert json_of("run", bundle, "Once upon a time", *options)["tokens"] == wanted["tokens"]
    for words, more in (
        ([bundle, "Once upon a time"], {}),
        ([bundle.name, "Once upon a time"], {"cwd": bundle.parent}),
        ([f"{bundle.name}/"], {"cwd": bundle.parent, "input": "Once upon a time"}),  # as a shell completes it
    ):
        process = edgellm("run", *words, *options, **more)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.removesuffix("\n") == wanted["text"].removesuffix("\n")


def test_a_bundle_of_a_folder_chats_with_its_tokenizer(edgellm, json_of, tmp_path):
    folder = tmp_path / "model"
    write_bitnet(folder, vocab=add_tokenizer(folder, "llama-spm"), config={"hidden_act": "relu2"})
    json_of("pack", folder, tmp_path / "out.edge")
    run = ("one two", "-n", "4", "--temp", "0", "--executor", "reference")
    found = [json_of("run", "-m", model, *run) for model in (folder, tmp_path / "out.edge")]
    assert found[0]["prompt_tokens"] == found[1]["prompt_tokens"]
    assert found[0]["tokens"] == found[1]["tokens"]
    process = edgellm("chat", tmp_path / "out.edge", *run[1:], input="one two\n")
    assert (process.returncode, process.stderr) == (0, "")


def test_json(json_of, tmp_path):
    out = tmp_path / "out.edge"
    found = json_of("pack", "tiny", out, "--mode", "sparse-predicted", "--down", "q8_0")
    assert found["path"] == str(out)
    assert found["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert found["mode"] == "sparse-predicted"
    assert found["slots"]["codecs"] == {"up": "t2", "down": "q8_0", "gate": "t2"}
    assert set(found["loss"]) == {"up", "down", "gate"}
    assert found["loss"]["down"]["relative_rms"] < 0.01
    assert json_of("verify", out) == {"path": str(out), "whole": True, "problems": []}


def test_a_folder_gets_its_tokenizer(json_of, tmp_path):
    folder = tmp_path / "model"
    vocab = add_tokenizer(folder, "llama-spm")
    write_bitnet(folder, vocab=vocab, config={"hidden_act": "relu2"})
    json_of("pack", folder, tmp_path / "out.edge")
    metadata = open_checkpoint(tmp_path / "out.edge").metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == vocab
    assert metadata["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"


def test_a_text_puts_the_neurons_that_fire_first(json_of, monkeypatch, tmp_path):
    from edgellm.flash import calibrate

    frequency = np.random.default_rng(0).random((8, 1024), np.float32)
    frequency[:, 5] = frequency[:, 9] = 2.0
    asked = []

    def firing(checkpoint, text, threads, progress=None):
        asked.append((text, threads))
        return calibrate.Firing(frequency, 7)

    monkeypatch.setattr(calibrate, "firing", firing)
    (tmp_path / "book.txt").write_text("Once upon a time")
    json_of("pack", "tiny", tmp_path / "out.edge", "--text", tmp_path / "book.txt", "--threads", 2)
    assert asked == [("Once upon a time", 2)]
    bundle = open_checkpoint(tmp_path / "out.edge").bundle
    assert (bundle.order[:, :2] == [5, 9]).all()  # of equals the first comes first
    assert (np.diff(bundle.frequency, axis=1) <= 0).all()
    facts = bundle.manifest["calibration"]
    assert (facts["text"], facts["tokens"], len(facts["sha256"])) == ("book.txt", 7, 64)


def test_damage_is_listed_with_exit_code_1(edgellm, bundle, tmp_path):
    copy = tmp_path / "copy.edge"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / "ffn.bin").open("r+b") as file:
        file.seek((2 << 20) + 7)
        file.write(b"\xee")
    process = edgellm("verify", copy)
    assert (process.returncode, process.stderr) == (1, "")
    assert process.stdout.splitlines() == [
        f"{copy}: ffn.bin: the content has another sha256 than the manifest says",
        f"{copy}: ffn.bin: layer 0, neurons 0 to 10 differ from their checksum",
    ]
    os.truncate(copy / "neurons.safetensors", 100)
    process = edgellm("verify", copy, "--json")
    assert process.returncode == 1
    assert not json.loads(process.stdout)["whole"]


def test_wrong_usage_is_one_sentence(edgellm, sentence, tiny, bundle, stream, tmp_path):
    (tmp_path / "text.txt").write_text("words")
    for arguments, phrase in [
        (["pack", tiny, "out.edge", "--mode", "sparse-exact"], "its activation is silu"),
        (["pack", tiny, "out.edge", "--text", "text.txt", "--mode", "stream"], "no order of neurons"),
        (["pack", "tiny", "out.edge", "--text", "none.txt"], "none.txt: cannot be read"),
        (["pack", "tiny", bundle], "this bundle is there already"),
        (["pack", "tiny", "text.txt", "--force"], "no bundle"),
        (["pack", bundle, "out.edge"], "this is a bundle already"),
        (["pack", bundle, "out.edge", "--text", "text.txt"], "this is a bundle already"),
        (["pack", stream, "out.edge"], "this is a bundle already"),
        (["inspect", "none.edge"], "none.edge: no such model file or folder"),
        (["run", "none.edge", "Hi"], "none.edge: no such model file or folder"),
        (["pull", "tiny", "--name", "a.edge"], "no .gguf or .edge at the end"),
        (["pack", "tiny", "out.edge", "--mode", "dense"], "'dense' is not one of"),
        (["pack", "tiny", "no/out.edge"], "does not exist"),
        (["verify", "text.txt"], "this is a file and no bundle"),
        (["verify", "none.edge"], "none.edge"),
    ]:
        assert phrase in sentence(edgellm(*arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]

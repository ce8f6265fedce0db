from __future__ import annotations

import os

import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from tests.formats.tiny_bitnet import LINEARS, add_tokenizer, write_bitnet


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory):
    """A folder with packed ternary weights and a SentencePiece vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "bitnet"
    return write_bitnet(folder, vocab=add_tokenizer(folder, "llama-spm"))


@pytest.fixture(scope="module")
def undeclared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "master"
    return write_bitnet(folder, "undeclared", vocab=add_tokenizer(folder, "llama-spm"))


def test_the_file_is_named_and_runs(edgellm, bitnet, tmp_path):
    out = tmp_path / "out.gguf"
    process = edgellm("convert", bitnet, out, "--type", "TQ2_0")
    assert (process.returncode, process.stdout, process.stderr) == (0, f"{out}\n", "")
    run = ("--raw", "-n", "4", "--temp", "0", "--executor", "reference", "--json", "Once upon a time")
    texts = [
        edgellm("run", *run, "--model", model).stdout.partition('"timings"')[0] for model in (bitnet, out)
    ]
    assert texts[0]
    assert texts[0].replace(str(bitnet), "") == texts[1].replace(str(out), "")


def test_json_and_the_types(json_of, bitnet, tmp_path):
    out = tmp_path / "out.gguf"
    found = json_of("convert", bitnet, "-o", out, "--type", "TQ1_0", "--outer", "Q8_0")
    assert found == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "architecture": "bitnet",
        "type": "TQ1_0",
        "types": {"TQ1_0": len(LINEARS), "F32": len(LINEARS) + 9, "Q8_0": 1},
        "rounded": 0,
    }
    assert open_checkpoint(out).tensors["token_embd.weight"].type == "Q8_0"


def test_rounding_is_told(edgellm, undeclared, tmp_path):
    process = edgellm("convert", undeclared, tmp_path / "out.gguf", "--type", "TQ2_0")
    assert process.returncode == 0
    assert f"{len(LINEARS)} matrices of master weights were rounded" in process.stderr


def test_what_llama_cpp_cannot_read_is_told(edgellm, tmp_path):
    folder = tmp_path / "relu"
    write_bitnet(folder, vocab=add_tokenizer(folder, "llama-spm"), config={"hidden_act": "relu2"})
    assert (
        "llama.cpp itself has only bitnet"
        in edgellm("convert", folder, tmp_path / "out.gguf", "--type", "TQ2_0").stderr
    )


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--type", "TQ2_0"], "Name the file to write once"),
        (["out.gguf", "-o", "other.gguf", "--type", "TQ2_0"], "Name the file to write once"),
        (["out.gguf"], "Missing option '--type'"),
        (["out.gguf", "--type", "Q6_K"], "'Q6_K' is not one of"),
        (["missing/out.gguf", "--type", "TQ2_0"], "the folder missing does not exist"),
    ],
)
def test_wrong_usage_is_one_sentence(edgellm, sentence, bitnet, tmp_path, arguments, phrase):
    assert phrase in sentence(edgellm("convert", bitnet, *arguments, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_ordinary_weights_are_refused(edgellm, sentence, tiny, tmp_path):
    said = sentence(edgellm("convert", tiny, tmp_path / "out.gguf", "--type", "TQ2_0"))
    assert "multiples of 256" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["sparse-exact", "stream"])
def test_bundles_are_refused(edgellm, sentence, shipped, tmp_path, mode):
    bundle = tmp_path / "model.edge"
    pack(open_checkpoint(shipped), bundle, mode=mode)
    for kind in ("TQ2_0", "F16"):
        said = sentence(edgellm("convert", bundle, tmp_path / "out.gguf", "--type", kind))
        assert said == f"edgellm: {bundle}: this is a bundle; convert the model that it was made from."
    assert list(tmp_path.iterdir()) == [bundle]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("form", ["bitnet", "undeclared"])
def test_llama_cpp_computes_the_same_perplexity(request, monkeypatch, tmp_path, form, kind):
    """On the same file; it rounds activations by blocks of 256, not by token as the model does."""
    if not os.environ.get("EDGELLM_PEER_DIR"):
        pytest.skip("EDGELLM_PEER_DIR names no folder with llama.cpp's programs")
    from edgellm.cli.app import main
    from tools.peers import perplexity

    monkeypatch.setenv("EDGELLM_PACKED", "off")
    out, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    text.write_bytes(perplexity.TEXT.read_bytes()[:6000])
    assert main(["convert", str(request.getfixturevalue(form)), str(out), "--type", kind]) == 0
    for left in reversed(range(6)):
        try:
            result = perplexity.compare(kind, out, text, ctx=128, threads=2)
            break
        except (
            EdgeError
        ) as error:  # on so small a model llama-perplexity now and then ends before its log does
            if "no final estimate" not in str(error) or not left:
                raise
    assert result.chunks > 10
    perplexity.check([result])

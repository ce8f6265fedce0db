"""The generated models: complete files that run, the same bytes each time, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program
from edgellm.text.tokenizer import load_tokenizer
from tools.random_model import write as writer
from tools.random_model.__main__ import main
from tools.random_model.shapes import SHAPES
from tools.random_model.vocabulary import vocabulary

TINY = SHAPES["tiny"]


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0", "BF16", "TQ2_0"])
def test_native_and_reference_agree_and_stay_finite_over_512_tokens(type_name: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert writer.write(path, TINY, type_name) == path.stat().st_size
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["blk.1.ffn_down.weight"].type == type_name
    program = build_program(checkpoint)
    tokens = np.random.default_rng(5).integers(0, TINY.vocab, 512)
    expected = ReferenceExecutor(program, checkpoint).new_session(512).forward(tokens, all_logits=True)
    native = NativeExecutor(program, checkpoint, threads=2)
    logits = native.new_session(512).forward(tokens, all_logits=True)
    native.close()
    assert np.isfinite(expected).all()
    assert 0.3 < expected.std() < 3  # neither vanishing nor exploding
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 2e-3


def test_weights_have_the_deviation_that_keeps_activations_near_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer.write(path, TINY, "F16")
    tensors = open_checkpoint(path).tensors
    assert tensors["blk.0.ffn_up.weight"].dequantize().std() == pytest.approx(256**-0.5, rel=0.02)
    assert tensors["blk.0.ffn_down.weight"].dequantize().std() == pytest.approx(512**-0.5 / 2, rel=0.02)
    assert tensors["output_norm.weight"].dequantize().mean() == pytest.approx(1, abs=0.05)


def test_ternary_models_have_three_values_a_row_and_float_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer.write(path, TINY, "TQ2_0")
    tensors = open_checkpoint(path).tensors
    assert len(np.unique(tensors["blk.0.attn_q.weight"].dequantize())) == 3
    assert {tensors["token_embd.weight"].type, tensors["output.weight"].type} == {"F16"}
    writer.write(path, TINY, "TQ2_0", outer="Q8_0")
    tensors = open_checkpoint(path).tensors
    assert {tensors["token_embd.weight"].type, tensors["output.weight"].type} == {"Q8_0"}
    assert tensors["blk.0.attn_q.weight"].type == "TQ2_0"


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.gguf" for i in range(3)]
    for path, seed in zip(paths, (3, 3, 4), strict=True):
        writer.write(path, TINY, "Q4_0", seed=seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other
    assert len(first) == len(other)


def test_text_survives_the_generated_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer.write(path, TINY, "Q8_0")
    tokenizer = load_tokenizer(open_checkpoint(path))
    ids = tokenizer.encode("an æsop's tale, twice")
    assert tokenizer.decode(ids) == "an æsop's tale, twice"
    assert len(ids) < len("an æsop's tale, twice".encode())  # merges were applied


@pytest.mark.parametrize("size", [257, 300, 32000, 128256])
def test_vocabularies_of_any_size_have_no_token_twice_and_can_reach_each(size: int) -> None:
    tokens, merges = vocabulary(size)
    assert len(set(tokens)) == len(tokens) == size
    known = set(tokens)
    for merge in merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


def test_the_named_shapes_are_those_of_their_models() -> None:
    def millions(name: str) -> int:
        shape = SHAPES[name]
        return round(sum(r * c for r, c in shape.matrices().values()) / 1e6)

    assert millions("llama-1.1b") == 1100  # 1.1 billion
    assert millions("smollm2-135m") == 134  # 134.5 M with the norms
    assert millions("llama-3b") == 3213


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(values: np.ndarray, kind: str) -> memoryview:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_encoded", full)
    with pytest.raises(EdgeError, match=r"model\.gguf: the model could not be written \(No space"):
        writer.write(tmp_path / "model.gguf", TINY, "Q4_0")
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="cannot be of type Q4_K; choose one of F32"):
        writer.write(tmp_path / "model.gguf", TINY, "Q4_K")


def test_the_command_tells_the_size_of_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    assert main(["tiny", "--type", "Q4_1", "-o", str(path), "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"

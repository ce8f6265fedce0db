"""The native executor against the reference executor, architecture by architecture, and on a real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor, executor, weights
from edgellm.executors.reference import KvCache, ReferenceExecutor
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.kernels.simd.level import host_levels, host_target
from edgellm.models import build_program

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"
BASES = json.loads((GOLDENS / "bases.json").read_text())
NAMES = sorted(p.parent.name for p in GOLDENS.glob("*/config.json"))
NAMES.remove("bitnet-int8")  # transformers rounds its activations to int8


def open_golden(name: str, folder: Path) -> Checkpoint:
    """A golden model; variants share the weights of their base."""
    shutil.copy(GOLDENS / name / "config.json", folder)
    shutil.copy(GOLDENS / BASES.get(name, name) / "model.safetensors", folder)
    return open_checkpoint(folder)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_there_are_golden_models_of_every_architecture() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt", "bitnet"} <= set(NAMES)


@pytest.mark.parametrize("level", host_levels())
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name: str, level: str, tmp_path: Path) -> None:
    checkpoint = open_golden(name, tmp_path)
    golden = np.load(GOLDENS / name / "logits.npz")
    tokens, expected = golden["tokens"], golden["logits"]
    program = build_program(checkpoint, context=len(tokens))
    results = []
    for threads in (1, 3):
        native = NativeExecutor(program, checkpoint, threads=threads, target=host_target(level))
        session = native.new_session(len(tokens))
        prefill = session.forward(tokens, all_logits=True)
        session.rewind(7)
        decoded = [session.decode(int(t)) for t in tokens[7:11]]
        split = session.forward(tokens[11:])
        native.close()
        assert relative_error(prefill[golden["positions"]], expected) < 2e-3  # the KV cache is float16
        assert relative_error(np.stack(decoded), prefill[7:11]) < 2e-3
        assert relative_error(split, prefill[-1]) < 2e-3
        results.append((prefill, np.stack(decoded), split))
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("ternary", [False, True])
def test_inputs_are_rounded_as_the_program_says(
    ternary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of floats and of ternary weights. A value between two steps may go to either, here and there, so the
    reference must keep keys and values in float16 too, and most tokens must agree, not all."""
    shutil.copy(GOLDENS / "bitnet" / "model.safetensors", tmp_path)
    config = json.loads((GOLDENS / "bitnet" / "config.json").read_text())
    if ternary:
        online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
        config["quantization_config"] = online
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    tokens = np.random.default_rng(7).integers(0, checkpoint.config.vocab_size, 60)
    write = KvCache.write

    def write_half(cache: KvCache, positions: np.ndarray, *kv: np.ndarray) -> None:
        write(cache, positions, *(x.astype(np.float16).astype(np.float32) for x in kv))

    monkeypatch.setattr(KvCache, "write", write_half)
    found = {}
    for rounding in ("int8", None):
        checkpoint.config.input_rounding = rounding  # type: ignore[assignment]
        program = build_program(checkpoint, context=64)
        session = ReferenceExecutor(program, checkpoint).new_session(64)
        found[rounding] = session.forward(tokens, all_logits=True)
        if rounding is None:
            break
        native = NativeExecutor(program, checkpoint, threads=2)
        session = native.new_session(64)
        prefill = session.forward(tokens, all_logits=True)
        session.rewind(40)
        decoded = np.stack([session.decode(int(t)) for t in tokens[40:50]])
        native.close()

    def error(a: np.ndarray, b: np.ndarray) -> float:
        """Of the median token."""
        return float(np.median(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)))

    assert error(prefill, found["int8"]) < 1e-5
    assert error(decoded, found["int8"][40:50]) < 1e-5
    assert error(found[None], found["int8"]) > 1e-2  # what rounding changes


def test_prefill_in_chunks_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CHUNK", 48)
    checkpoint = open_checkpoint(GOLDENS / "llama")
    program = build_program(checkpoint)
    tokens = np.random.default_rng(1).integers(0, program.vocab_size, 250)
    context = 256
    expected = ReferenceExecutor(program, checkpoint).new_session(context).forward(tokens, all_logits=True)
    native = NativeExecutor(program, checkpoint, threads=2)
    session = native.new_session(context)
    assert relative_error(session.forward(tokens, all_logits=True), expected) < 2e-3
    assert session.kv_bytes > 0
    native.close()


def test_residual_that_was_normalised_in_place_is_added_to(tmp_path: Path) -> None:
    """Post-norm blocks, one after another: the second adds to what the first one's norm wrote."""
    config = json.loads((GOLDENS / "opt-post-norm" / "config.json").read_text())
    tensors = load_file(GOLDENS / "opt-post-norm" / "model.safetensors")
    again = {k.replace("layers.0.", "layers.1."): v for k, v in tensors.items() if "layers.0." in k}
    assert again
    save_file({**tensors, **again}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    checkpoint = open_checkpoint(tmp_path)
    program = build_program(checkpoint)
    tokens = np.random.default_rng(3).integers(0, program.vocab_size, 20)
    expected = ReferenceExecutor(program, checkpoint).new_session(32).forward(tokens, all_logits=True)
    native = NativeExecutor(program, checkpoint, threads=2)
    session = native.new_session(32)
    assert relative_error(session.forward(tokens, all_logits=True), expected) < 2e-3
    session.rewind(0)
    assert relative_error(np.stack([session.decode(int(t)) for t in tokens]), expected) < 2e-3
    native.close()


def test_sessions_do_not_disturb_each_other() -> None:
    checkpoint = open_checkpoint(GOLDENS / "qwen2")
    program = build_program(checkpoint)
    native = NativeExecutor(program, checkpoint, threads=2)
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, program.vocab_size, (2, 20))
    alone = [native.new_session(32).forward(t) for t in (first, second)]
    a, b = native.new_session(32), native.new_session(48)
    for start in range(0, 20, 5):
        last = a.forward(first[start : start + 5]), b.forward(second[start : start + 5])
    for result, expected in zip(last, alone, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    native.close()


def test_zero_threads_are_refused() -> None:
    checkpoint = open_checkpoint(GOLDENS / "llama")
    with pytest.raises(EdgeError, match="threads must be at least 1, not 0"):
        NativeExecutor(build_program(checkpoint), checkpoint, threads=0)


def test_model_larger_than_memory_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = open_checkpoint(GOLDENS / "llama")
    monkeypatch.setattr(weights, "memory_limit", lambda: 100_000)
    monkeypatch.setattr(weights, "reserve", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(EdgeError, match=r"weights take .* GiB in memory, which has 0.0 GiB"):
        NativeExecutor(build_program(checkpoint), checkpoint)


PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam, I am writing to",
    "Water boils at 100 degrees because",
    "In 1969, the first man on the moon",
    "My favourite recipe for bread needs",
    "Photosynthesis is the process by which",
    "Question: What is 12 times 7? Answer:",
]


@pytest.mark.slow
def test_real_model_follows_the_reference(smollm2: Path) -> None:
    """Logits within 2e-2, and the same 64 greedy tokens from at least 9 of 10 prompts."""
    from edgellm.text.tokenizer import load_tokenizer

    checkpoint = open_checkpoint(smollm2)
    program, tokenizer = build_program(checkpoint), load_tokenizer(checkpoint)
    native = NativeExecutor(program, checkpoint, threads=2)
    reference = ReferenceExecutor(program, checkpoint)
    same = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        session = native.new_session(128)
        logits, generated = session.prefill(ids), []
        for _ in range(64):
            generated.append(int(logits.argmax()))
            logits = session.decode(generated[-1])
        # One call of the reference over the native tokens: equal greedy choices at every step, or not.
        whole = reference.new_session(128).forward(ids + generated, all_logits=True)
        session.rewind(0)
        assert relative_error(session.forward(ids + generated, all_logits=True), whole) < 2e-2
        same += bool(np.array_equal(whole[len(ids) - 1 : -1].argmax(axis=1), generated))
    native.close()
    assert same >= 9

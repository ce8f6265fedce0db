"""Several sequences in one step against each of them alone, and against the reference executor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.base import Executor
from edgellm.executors.native import NativeExecutor, executor
from edgellm.executors.reference import ReferenceExecutor
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.models import build_program

GOLDENS = Path(__file__).parents[1] / "models" / "goldens"
# Sliding windows, soft caps, norms of heads, grouped queries, learned positions, a residual that is private.
NAMES = ["gemma2", "gemma3", "qwen3", "bitnet", "opt", "opt-post-norm"]
DEPTHS = (1, 30, 5, 17, 2)
LENGTHS = [(12, 1, 5), (1, 31, 9), (1, 1, 1), (20, 1, 3)]  # tokens of each of three sequences, step by step
ROUNDING = 1e-4  # kernels for one row add up in another order; now and then the float16 cache rounds apart


def open_executor(name: str, threads: int) -> NativeExecutor:
    checkpoint = open_checkpoint(GOLDENS / name)
    return NativeExecutor(build_program(checkpoint, context=64), checkpoint, threads=threads)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_batched_decode_equals_decode_alone(name: str, threads: int) -> None:
    native = open_executor(name, threads)
    reference = ReferenceExecutor(native.program, open_checkpoint(GOLDENS / name), np.float16)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, native.program.vocab_size, depth) for depth in DEPTHS]
    together, alone, expected = ([e.new_session(64) for _ in DEPTHS] for e in (native, native, reference))
    for sessions in (together, alone, expected):
        for session, prompt in zip(sessions, prompts, strict=True):
            session.prefill(prompt)
    for _ in range(3):
        tokens = rng.integers(0, native.program.vocab_size, len(DEPTHS)).tolist()
        batch = native.decode_batch(together, tokens)
        single = np.stack([s.decode(t) for s, t in zip(alone, tokens, strict=True)])
        assert batch.dtype == np.float32
        assert batch.shape == (len(DEPTHS), native.program.vocab_size)
        assert relative_error(batch, single) < ROUNDING
        for row, other in zip(batch, reference.decode_batch(expected, tokens), strict=True):
            assert relative_error(row, other) < 2e-3
    assert [s.position for s in together] == [d + 3 for d in DEPTHS]
    native.close()


@pytest.mark.parametrize("chunk", [8, 256])
def test_prompts_of_some_run_beside_decode_of_others(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CHUNK", chunk)
    native = open_executor("gemma2", 2)
    rng = np.random.default_rng(2)
    together, alone = ([native.new_session(64) for _ in LENGTHS[0]] for _ in range(2))
    for sizes in LENGTHS:
        step = [rng.integers(0, native.program.vocab_size, n) for n in sizes]
        batch = native.forward_batch(together, step)
        single = np.stack([s.forward(t) for s, t in zip(alone, step, strict=True)])
        assert relative_error(batch, single) < ROUNDING
    native.close()


def test_logits_of_all_tokens_end_with_those_of_the_last() -> None:
    native = open_executor("opt-post-norm", 3)  # its residual is private
    tokens = np.random.default_rng(4).integers(0, native.program.vocab_size, 11)
    every = native.new_session(64).forward(tokens, all_logits=True)
    last = native.new_session(64).forward(tokens)
    assert relative_error(last, every[-1]) < ROUNDING
    native.close()


def make_sessions(native: Executor, positions: tuple[int, ...]) -> list:
    sessions = [native.new_session(8) for _ in positions]
    for session, position in zip(sessions, positions, strict=True):
        session.prefill([1] * position)
    return sessions


def test_a_batch_with_one_wrong_part_moves_no_session() -> None:
    native, other = open_executor("llama", 1), open_executor("llama", 1)
    sessions = make_sessions(native, (2, 8))
    with pytest.raises(EdgeError, match="longer than the context of 8"):
        native.decode_batch(sessions, [1, 1])
    with pytest.raises(EdgeError, match="outside the vocabulary"):
        native.decode_batch(sessions[:1], [native.program.vocab_size])
    with pytest.raises(EdgeError, match="empty"):
        native.forward_batch(sessions[:1], [[]])
    with pytest.raises(ValueError, match="twice"):
        native.decode_batch([sessions[0], sessions[0]], [1, 1])
    with pytest.raises(ValueError, match="another executor"):
        other.decode_batch(sessions[:1], [1])
    with pytest.raises(ValueError, match="1 sessions were given tokens for 2"):
        native.decode_batch(sessions[:1], [1, 2])
    assert [s.position for s in sessions] == [2, 8]
    native.close()
    other.close()

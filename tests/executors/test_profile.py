"""A profiled run computes the same, counts what a hand counts, and its times fill the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgellm.executors.native import NativeExecutor
from edgellm.executors.native.cost import Cost, kernel_label, weight_label
from edgellm.executors.native.profile import OpTime
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.kernels.layout import TileLayout
from edgellm.models import build_program
from edgellm.program.ops import Weight
from tools.random_model.shapes import SHAPES
from tools.random_model.write import write

SHAPE = SHAPES["tiny"]
PLANES = 2


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeExecutor]:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write(path, SHAPE, "Q4_0")
    checkpoint = open_checkpoint(path)
    native = NativeExecutor(build_program(checkpoint), checkpoint, threads=3, activation_planes=PLANES)
    yield native
    native.close()


def elements(label: str) -> int:
    """Of one matrix of that kind."""
    rows, columns = SHAPE.matrices().get(f"blk.0.{label}.weight") or SHAPE.matrices()[f"{label}.weight"]
    return rows * columns


MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def by_label(found: list[OpTime]) -> dict[str, OpTime]:
    assert len({op.label for op in found}) == len(found)
    return {op.label: op for op in found}


def test_a_profiled_run_gives_the_same_logits(executor: NativeExecutor) -> None:
    tokens = np.arange(40) % SHAPE.vocab
    plain, profiled = executor.new_session(64), executor.new_session(64)
    plain.prefill(tokens)
    executor.profile(profiled, tokens)
    assert profiled.position == 40
    np.testing.assert_array_equal(profiled.decode(7), plain.decode(7))


def test_a_decoded_token_needs_every_matrix_once(executor: NativeExecutor) -> None:
    session = executor.new_session(64)
    session.prefill(np.arange(10))
    found = by_label(executor.profile(session, [1]))
    for label in MATRICES:
        calls = 1 if label == "output" else SHAPE.layers
        assert found[label].calls == calls
        assert found[label].int8_macs == PLANES * calls * elements(label)
    packed = sum(found[label].weight_bytes for label in MATRICES)
    # Q4_0 as it is packed: 4 bits a weight, a half scale per 32, a row scale per row
    assert packed == sum(
        rows // 16 * TileLayout(columns, 4, False, 32).stride
        for name, (rows, columns) in SHAPE.matrices().items()
        if name != "token_embd.weight"
    )


def test_sequences_in_one_step_read_the_weights_once(executor: NativeExecutor) -> None:
    sessions = [executor.new_session(64) for _ in range(4)]
    for session in sessions:
        session.prefill(np.arange(10))
    alone = by_label(executor.profile(sessions[0], [1]))
    sessions[0].rewind(10)
    together = by_label(executor.profile_batch(sessions, [1] * 4))
    assert [session.position for session in sessions] == [11] * 4
    for label in MATRICES:
        assert together[label].weight_bytes == alone[label].weight_bytes
        assert together[label].int8_macs == 4 * alone[label].int8_macs
    assert together["attend"].kv_bytes == 4 * alone["attend"].kv_bytes


def test_attention_reads_the_cache_up_to_the_token_itself(executor: NativeExecutor) -> None:
    session = executor.new_session(64)
    session.prefill(np.arange(10))
    attend = by_label(executor.profile(session, [1]))["attend"]
    # keys and values, float16, of 11 positions in every layer
    assert attend.kv_bytes == SHAPE.layers * 11 * 2 * 2 * SHAPE.kv_heads * SHAPE.head_dim
    assert attend.float_macs == SHAPE.layers * 11 * 2 * SHAPE.heads * SHAPE.head_dim


def test_a_long_prompt_is_counted_step_by_step_and_its_tail_for_one_row(executor: NativeExecutor) -> None:
    session = executor.new_session(400)
    found = by_label(executor.profile(session, np.arange(300) % SHAPE.vocab))  # steps of 256 and 44
    assert found["attn_q"].calls == 2 * SHAPE.layers
    assert found["attn_q"].int8_macs == PLANES * 300 * SHAPE.layers * elements("attn_q")
    assert found["attend"].float_macs == SHAPE.layers * 2 * SHAPE.heads * SHAPE.head_dim * (300 * 301 // 2)
    assert found["output"].calls == 1
    assert found["output"].int8_macs == PLANES * elements("output")


def test_the_times_of_all_ops_fill_the_run(executor: NativeExecutor) -> None:
    session = executor.new_session(400)
    tokens = np.arange(300) % SHAPE.vocab
    executor.profile(session, tokens)
    session.rewind(0)
    started = time.perf_counter()
    found = executor.profile(session, tokens)
    elapsed = time.perf_counter() - started
    whole = sum(op.mean_seconds + op.wait_seconds for op in found)
    assert 0.2 * elapsed < whole <= elapsed
    for op in found:
        assert op.seconds >= op.mean_seconds > 0
        assert op.wait_seconds >= 0


def test_an_executor_that_was_profiled_goes_on_without(executor: NativeExecutor) -> None:
    session = executor.new_session(16)
    executor.profile(session, [1])
    assert executor._profiler is None


@pytest.mark.parametrize("window", [0, 1, 5, 100])
@pytest.mark.parametrize(("position", "rows"), [(0, 1), (0, 9), (3, 4), (50, 7)])
def test_positions_that_rows_see_are_counted_one_by_one(window: int, position: int, rows: int) -> None:
    seen = [
        {q for q in range(p + 1) if not window or q > p - window} for p in range(position, position + rows)
    ]
    read, total = Cost("attend", window=window).kv_positions(position, rows)
    assert read == len(set().union(*seen))
    assert total == sum(map(len, seen))


@pytest.mark.parametrize(
    ("kernel", "label"),
    [
        ("norm", "norm"),
        ("elementwise/function=silu", "silu"),
        ("attention/part=append,kv=fp16,dim=64", "append"),
        ("rope/style=half", "rope"),
        ("quantize/planes=2", "quantize"),
        ("quantize/planes=2,norm=1", "norm+quantize"),
    ],
)
def test_an_op_without_a_weight_is_named_after_its_kernel(kernel: str, label: str) -> None:
    assert kernel_label(kernel) == label


@pytest.mark.parametrize(
    ("weight", "label"),
    [
        (Weight("blk.12.ffn_down.weight"), "ffn_down"),
        (Weight("blk.0.attn_qkv.weight", rows=(0, 64)), "attn_qkv"),
        (Weight("output.weight"), "output"),
        (Weight("token_embd.weight"), "output"),
    ],
)
def test_an_op_with_a_weight_is_named_after_it_in_every_layer(weight: Weight, label: str) -> None:
    assert weight_label(weight) == label

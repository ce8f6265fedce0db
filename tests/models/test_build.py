"""build_program: what it refuses, and what it makes of each architecture's peculiarities."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.models import build_program
from edgellm.program import Program
from edgellm.program.ops import Attend, Ffn, Linear, Logits, Rope

GOLDENS = Path(__file__).parent / "goldens"


def golden(name: str) -> Checkpoint:
    return open_checkpoint(GOLDENS / name)


def only(kind: type, program: Program) -> list:
    return [op for op in program.ops if isinstance(op, kind)]


def test_refuses_an_unknown_architecture() -> None:
    checkpoint = golden("llama")
    checkpoint.config.architecture = "perceptron"
    with pytest.raises(
        EdgeError, match=r"llama: the architecture 'perceptron' is not supported; known are llama"
    ):
        build_program(checkpoint)


def test_refuses_an_unknown_activation() -> None:
    checkpoint = golden("llama")
    checkpoint.config.activation = "tanh"
    with pytest.raises(EdgeError, match="the activation 'tanh' is not supported"):
        build_program(checkpoint)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "opt", "bitnet"])
def test_names_each_missing_tensor(name: str) -> None:
    """Of a fused matrix, the first of the separate ones that could stand in for it."""
    checkpoint = golden(name)
    for lost in checkpoint.tensors:
        if lost.endswith(".bias") or lost == "output.weight" or (name == "opt" and "norm" in lost):
            continue  # these are optional in a file
        rest = {n: tensor for n, tensor in checkpoint.tensors.items() if n != lost}
        named = lost.replace("attn_qkv", "attn_q")
        with pytest.raises(EdgeError, match=rf"the tensor {named} is missing"):
            build_program(replace(checkpoint, tensors=rest))


def test_biases_that_no_op_takes_are_refused() -> None:
    """An FFN gate has no bias in the op set; dropping one silently would compute another network."""
    checkpoint = golden("llama")
    bias = replace(checkpoint.tensors["blk.1.attn_norm.weight"], name="blk.1.ffn_gate.bias")
    with pytest.raises(EdgeError, match=r"no use for the tensor blk\.1\.ffn_gate\.bias"):
        build_program(replace(checkpoint, tensors={**checkpoint.tensors, bias.name: bias}))


def test_a_scale_must_be_one_number() -> None:
    checkpoint = golden("bitnet")
    scale = replace(checkpoint.tensors["blk.0.attn_norm.weight"], name="blk.0.attn_q.scale")
    with pytest.raises(EdgeError, match=r"the tensor blk\.0\.attn_q\.scale should hold one number"):
        build_program(replace(checkpoint, tensors={**checkpoint.tensors, scale.name: scale}))


def test_tied_and_separate_output_matrices() -> None:
    assert only(Logits, build_program(golden("llama")))[0].weight.name == "output.weight"
    assert only(Logits, build_program(golden("qwen3")))[0].weight.name == "token_embd.weight"


def test_sliding_windows_and_rope_bases_alternate_in_gemma3() -> None:
    program = build_program(golden("gemma3"))
    assert [op.window for op in only(Attend, program)] == [16, None, 16]
    assert [slot.window for slot in program.kv_slots] == [16, None, 16]
    slowest = [float(op.inv_freq[-1]) for op in only(Rope, program)[::2]]
    assert slowest[0] == slowest[2] == pytest.approx(1e4 ** (-15 / 16))
    assert slowest[1] == pytest.approx(1e6 ** (-15 / 16))


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    checkpoint = golden("phi3")
    checkpoint.config.sliding_window = checkpoint.config.context_length
    assert only(Attend, build_program(checkpoint))[0].window is None


def test_fused_matrices_are_taken_by_rows() -> None:
    program = build_program(golden("phi3"))
    rows = [op.weight.rows for op in only(Linear, program)[:3]]
    assert rows == [(0, 64), (64, 96), (96, 128)]
    ffn = only(Ffn, program)[0]
    assert (ffn.gate.rows, ffn.up.rows) == ((0, 96), (96, 192))


def test_longrope_bounds_the_context_by_its_short_factors(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "phi3-longrope-long" / "config.json", tmp_path)
    shutil.copy(GOLDENS / "phi3" / "model.safetensors", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert build_program(checkpoint).context_length == 32
    assert build_program(checkpoint, context=32).context_length == 32
    assert build_program(checkpoint, context=33).context_length == 256

"""validate() accepts a sound Program and names what is wrong with an unsound one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import ModelConfig
from edgellm.formats.tensor import Tensor
from edgellm.program import KvSlot, Program, validate
from edgellm.program.ops import (
    Add,
    Attend,
    Embed,
    Ffn,
    KvAppend,
    Linear,
    Logits,
    Norm,
    Op,
    Rope,
    Scale,
    Weight,
)

SHAPES = {
    "token_embd.weight": (10, 8),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.attn_qkv.weight": (16, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_up.weight": (12, 8),
    "blk.0.ffn_down.weight": (8, 12),
    "output.weight": (10, 8),
}


def program() -> Program:
    """One block with 2 query heads on 1 key-value head of 4 dimensions."""
    qkv = "blk.0.attn_qkv.weight"
    ops: list[Op] = [
        Embed("x", Weight("token_embd.weight")),
        Norm("x", "h", 8, 1e-5, Weight("blk.0.attn_norm.weight"), layer=0),
        Linear("h", "q", Weight(qkv, (0, 8)), layer=0),
        Linear("h", "k", Weight(qkv, (8, 12)), layer=0),
        Linear("h", "v", Weight(qkv, (12, 16)), layer=0),
        Rope("q", 2, 4, np.ones(2, np.float32), "half", layer=0),
        KvAppend("k", "v", 0, 1, 4, layer=0),
        Attend("q", "o", 0, 2, 1, 4, 0.5, layer=0),
        Linear("o", "f", Weight("blk.0.attn_output.weight"), layer=0),
        Add("x", "f", "x", layer=0),
        Ffn("x", "f", Weight("blk.0.ffn_up.weight"), Weight("blk.0.ffn_down.weight"), 12, "relu", layer=0),
        Add("x", "f", "x", layer=0),
        Logits("x", "logits", Weight("output.weight")),
    ]
    buffers = {"x": 8, "h": 8, "q": 8, "k": 4, "v": 4, "o": 8, "f": 8, "logits": 10}
    return Program("llama", 10, 32, ops, buffers, [KvSlot(1, 4)])


def checkpoint(changes: dict[str, tuple[int, ...] | None] | None = None) -> Checkpoint:
    """F32 tensors of SHAPES, some with another shape or, for None, left out."""
    shapes = SHAPES | (changes or {})
    tensors = {
        name: Tensor(name, "F32", shape, np.zeros(shape, np.float32).view(np.uint8))
        for name, shape in shapes.items()
        if shape is not None
    }
    config = ModelConfig("llama", 32, 10, 8, 1, 2, 1, 4, 12, 1e-5)
    return Checkpoint(Path("tiny.gguf"), "gguf", config, tensors)


def test_accepts_a_sound_program() -> None:
    validate(program())
    validate(program(), checkpoint())


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (1, {"x": "nowhere"}, "uses the buffer 'nowhere'"),
        (1, {"x": "f"}, "reads the buffer 'f' before any op wrote it"),
        (1, {"width": 3}, "groups of 3 do not divide 8"),
        (5, {"heads": 3}, "3 heads of 4 are not 8 values"),
        (5, {"inv_freq": np.ones(3, np.float32)}, "6 rotated dimensions exceed a head of 4"),
        (6, {"slot": 1}, "cache slot 1 does not exist"),
        (6, {"kv_heads": 2}, "2 heads of 4 are not 4 keys and 4 values"),
        (7, {"slot": -1}, "cache slot -1 does not exist"),
        (7, {"kv_heads": 0}, "do not share 0 key-value heads"),
        (7, {"window": 0}, "sliding window is 0"),
        (9, {"y": "k"}, "8 and 4 values cannot be added"),
        (12, {"out": "x"}, "does not end in logits over 10 tokens"),
    ],
)
def test_names_the_fault_of_one_op(index: int, changes: dict[str, object], message: str) -> None:
    broken = program()
    broken.ops[index] = replace(broken.ops[index], **changes)  # type: ignore[arg-type]
    with pytest.raises(EdgeError, match=message):
        validate(broken)


def test_attending_needs_keys_in_the_cache() -> None:
    broken = program()
    del broken.ops[6]
    with pytest.raises(EdgeError, match="cache slot 0 is read before it is written"):
        validate(broken)


def test_a_slot_must_keep_what_the_window_shows() -> None:
    broken = program()
    broken.kv_slots[0] = KvSlot(1, 4, window=16)
    with pytest.raises(EdgeError, match="keeps only 16 positions"):
        validate(broken)


def test_widths_of_elementwise_ops_agree() -> None:
    broken = program()
    broken.ops.insert(-1, Scale("x", "k", 2.0))
    with pytest.raises(EdgeError, match="8 values do not fit 4"):
        validate(broken)


@pytest.mark.parametrize("name", SHAPES)
def test_names_every_missing_tensor(name: str) -> None:
    with pytest.raises(EdgeError, match=rf"tiny\.gguf: the tensor {name} is missing"):
        validate(program(), checkpoint({name: None}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd.weight", (9, 8)),
        ("token_embd.weight", (10, 4)),
        ("blk.0.attn_norm.weight", (4,)),
        ("blk.0.attn_qkv.weight", (15, 8)),
        ("blk.0.attn_output.weight", (8, 4)),
        ("blk.0.ffn_up.weight", (8, 12)),
        ("blk.0.ffn_down.weight", (8, 11)),
        ("output.weight", (11, 8)),
    ],
)
def test_names_every_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(EdgeError, match=f"the tensor {name} has a shape that disagrees with the metadata"):
        validate(program(), checkpoint({name: shape}))


def test_an_embedding_may_have_more_rows_than_the_vocabulary() -> None:
    validate(program(), checkpoint({"token_embd.weight": (16, 8)}))


def test_a_position_table_must_cover_the_context() -> None:
    longer = program()
    longer.ops.insert(1, Embed("h", Weight("position_embd.weight"), index="position", offset=2))
    validate(longer, checkpoint({"position_embd.weight": (34, 8)}))
    with pytest.raises(EdgeError, match=r"position_embd.weight .* disagrees"):
        validate(longer, checkpoint({"position_embd.weight": (33, 8)}))


def test_a_tensor_that_nothing_reads_is_an_error() -> None:
    with pytest.raises(EdgeError, match=r"no use for the tensor blk\.0\.attn_q\.bias"):
        validate(program(), checkpoint({"blk.0.attn_q.bias": (8,)}))


def test_tensors_outside_of_the_blocks_and_rope_divisors_may_go_unread() -> None:
    validate(program(), checkpoint({"rope_freqs.weight": (2,), "blk.0.rope_freqs.weight": (2,)}))

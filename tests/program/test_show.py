"""The listing of a Program and its JSON form."""

from __future__ import annotations

import json

import numpy as np

from edgellm.program import KvSlot, Program, format_program, to_dict
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
    Softcap,
    Weight,
)


def program(windows: tuple[int | None, ...]) -> Program:
    """One block per window; blocks differ in nothing else."""
    ops: list[Op] = [Embed("x", Weight("token_embd.weight"), scale=2.0)]
    for n, window in enumerate(windows):
        inv_freq = np.array([1.0, 0.01], np.float32)
        ops += [
            Norm("x", "x", 8, 1e-6, Weight(f"blk.{n}.attn_norm.weight"), weight_offset=1.0, layer=n),
            Linear("x", "q", Weight(f"blk.{n}.attn_q.weight"), Weight(f"blk.{n}.attn_q.bias"), layer=n),
            Rope("q", 2, 4, inv_freq, "half", magnitude=1.25, layer=n),
            KvAppend("q", "q", n, 2, 4, layer=n),
            Attend("q", "q", n, 2, 2, 4, 0.5, window, 50.0, layer=n),
            Ffn(
                "q",
                "q",
                Weight(f"blk.{n}.ffn_up.weight", (12, 24), 0.5),
                Weight(f"blk.{n}.ffn_down.weight"),
                12,
                "silu",
                gate=Weight(f"blk.{n}.ffn_up.weight", (0, 12)),
                layer=n,
            ),
            Add("x", "q", "x", layer=n),
        ]
    ops += [
        Scale("x", "x", 0.25),
        Logits("x", "logits", Weight("output.weight")),
        Softcap("logits", "logits", 30.0),
    ]
    slots = [KvSlot(2, 4, w) for w in windows]
    return Program("gemma2", 10, 32, ops, {"x": 8, "q": 8, "logits": 10}, slots)


def test_equal_blocks_are_listed_once() -> None:
    assert (
        format_program(program((None,) * 12))
        == """\
gemma2: vocabulary 10, context 32
buffers: x 8, q 8, logits 10
KV cache: 12 slots, 2 heads x 4

x = embed token_embd.weight[token], times 2
blocks 0-11:
  x = rms_norm x by 8 * (blk.N.attn_norm.weight + 1), eps 1e-06
  q = linear x, blk.N.attn_q.weight + blk.N.attn_q.bias
  q = rope q, 2 heads x 4, 4 dimensions half, frequencies 1 to 0.01, magnitude 1.25
  slot N append q, q, 2 heads x 4
  q = attend q, slot N, 2 heads on 2 x 4, scale 0.5, softcap 50
  q = ffn q, 12 neurons, silu(blk.N.ffn_up.weight[0:12]) * blk.N.ffn_up.weight[12:24] * 0.5, \
down blk.N.ffn_down.weight
  x = x + q
x = 0.25 * x
logits = logits x, output.weight
logits = softcap logits, 30"""
    )


def test_alternating_blocks_fall_into_two_groups() -> None:
    listing = format_program(program((16, None, 16, 16, None)))
    assert "\nblocks 0, 2-3:\n" in listing
    assert "\nblocks 1, 4:\n" in listing
    assert listing.count("attend") == 2
    assert listing.count("window 16") == 2  # in the header and in the first group
    assert "KV cache: 5 slots, 2 heads x 4; 2 heads x 4, window 16" in listing


def test_a_single_block_is_a_block() -> None:
    assert "\nblock 0:\n" in format_program(program((None,)))


def test_json_holds_every_field_of_every_op() -> None:
    original = program((None, 16))
    data = json.loads(json.dumps(to_dict(original)))
    assert [op["op"] for op in data["ops"]] == [type(op).__name__ for op in original.ops]
    assert data["ops"][0] == {
        "op": "Embed",
        "layer": -1,
        "out": "x",
        "table": {"name": "token_embd.weight", "rows": None, "scale": 1.0},
        "scale": 2.0,
        "index": "token",
        "offset": 0,
    }
    assert data["ops"][3]["inv_freq"] == [1.0, float(np.float32(0.01))]
    assert data["ops"][6]["up"] == {"name": "blk.0.ffn_up.weight", "rows": [12, 24], "scale": 0.5}
    assert data["kv_slots"][1] == {"kv_heads": 2, "head_dim": 4, "window": 16}
    assert data["buffers"] == {"x": 8, "q": 8, "logits": 10}

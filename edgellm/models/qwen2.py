"""Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on q, k and v."""

from __future__ import annotations

from edgellm.formats.checkpoint import Checkpoint
from edgellm.models.builder import ModelBuilder
from edgellm.models.rope import rope_table
from edgellm.program.program import Program


def build(checkpoint: Checkpoint, context: int) -> Program:
    m = ModelBuilder(checkpoint, context)
    hidden = checkpoint.config.hidden_size
    rope = rope_table(checkpoint, context)

    m.embed()
    for _ in m.blocks():
        m.norm("x", "h", "attn_norm")
        m.qkv("h")  # with attn_q.bias, attn_k.bias and attn_v.bias
        m.rope(rope)
        m.attend()
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

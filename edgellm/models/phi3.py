"""Phi-3 and Phi-4-mini (arXiv:2404.14219): Llama with q, k, v in one matrix and gate, up in another;
long-context variants scale RoPE by LongRoPE, the newest rotate a part of each head only.
"""

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
        m.qkv("h")  # rows of attn_qkv
        m.rope(rope)
        m.attend()
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")  # gate and up are rows of ffn_up
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

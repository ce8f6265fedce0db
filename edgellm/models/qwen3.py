"""Qwen3 (arXiv:2505.09388): Llama with an RMS norm on every head of q and k."""

from __future__ import annotations

from edgellm.formats.checkpoint import Checkpoint
from edgellm.models.builder import ModelBuilder
from edgellm.models.rope import rope_table
from edgellm.program.program import Program


def build(checkpoint: Checkpoint, context: int) -> Program:
    m = ModelBuilder(checkpoint, context)
    hidden, head_dim = checkpoint.config.hidden_size, checkpoint.config.head_dim
    rope = rope_table(checkpoint, context)

    m.embed()
    for _ in m.blocks():
        m.norm("x", "h", "attn_norm")
        m.qkv("h")
        m.norm("q", "q", "attn_q_norm", width=head_dim)
        m.norm("k", "k", "attn_k_norm", width=head_dim)
        m.rope(rope)
        m.attend()
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

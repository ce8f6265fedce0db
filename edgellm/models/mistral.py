"""Mistral 7B (arXiv:2310.06825): Llama whose attention sees a sliding window."""

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
        m.qkv("h")
        m.rope(rope)
        m.attend()  # within config.sliding_window
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

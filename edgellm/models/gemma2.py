"""Gemma 2 (arXiv:2408.00118): norms before and after attention and FFN, GeGLU, soft-capped scores and
logits, every other layer with a sliding window, embeddings times sqrt(hidden).
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
        m.qkv("h")
        m.rope(rope)
        m.attend()
        m.linear("attn", "o", "attn_output", hidden)
        m.norm("o", "o", "post_attention_norm")
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")
        m.norm("f", "f", "post_ffw_norm")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

"""Gemma 3, text (arXiv:2503.19786): Gemma 2 with norms on the heads of q and k instead of soft caps,
and five sliding-window layers, with their own RoPE base, for every global one.
"""

from __future__ import annotations

from edgellm.formats.checkpoint import Checkpoint
from edgellm.models.builder import ModelBuilder
from edgellm.models.rope import local_rope_table, rope_table
from edgellm.program.program import Program


def build(checkpoint: Checkpoint, context: int) -> Program:
    m = ModelBuilder(checkpoint, context)
    config = checkpoint.config
    rope, local_rope = rope_table(checkpoint, context), local_rope_table(checkpoint)

    m.embed()
    for layer in m.blocks():
        m.norm("x", "h", "attn_norm")
        m.qkv("h")
        m.norm("q", "q", "attn_q_norm", width=config.head_dim)
        m.norm("k", "k", "attn_k_norm", width=config.head_dim)
        m.rope(local_rope if m.slides(layer) else rope)
        m.attend()
        m.linear("attn", "o", "attn_output", config.hidden_size)
        m.norm("o", "o", "post_attention_norm")
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f")
        m.norm("f", "f", "post_ffw_norm")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

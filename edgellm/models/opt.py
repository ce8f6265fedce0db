"""OPT (arXiv:2205.01068): learned positions, layer norms and linears with biases, a ReLU FFN without gate.

OPT-350M normalises after each half block instead of before, and embeds in fewer dimensions than it computes.
"""

from __future__ import annotations

from edgellm.formats.checkpoint import Checkpoint
from edgellm.models.builder import ModelBuilder
from edgellm.program.program import Program


def build(checkpoint: Checkpoint, context: int) -> Program:
    m = ModelBuilder(checkpoint, context)
    hidden = checkpoint.config.hidden_size
    embedding = checkpoint.config.extra["word_embed_proj_dim"]
    norm_before = checkpoint.config.extra["do_layer_norm_before"]

    if embedding == hidden:
        m.embed()
    else:
        m.embed("e", embedding)
        m.linear("e", "x", "project_in", hidden)
    m.embed_positions(checkpoint.config.extra["position_offset"])  # 2: the first rows are unused
    for _ in m.blocks():
        if norm_before:
            m.layer_norm("x", "h", "attn_norm")
        m.qkv("h" if norm_before else "x")
        m.attend()
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")
        if not norm_before:
            m.layer_norm("x", "x", "attn_norm")
            m.ffn("x", "f", gated=False)
        else:
            m.layer_norm("x", "h", "ffn_norm")
            m.ffn("h", "f", gated=False)
        m.add("x", "f")
        if not norm_before:
            m.layer_norm("x", "x", "ffn_norm")

    if norm_before:
        m.layer_norm("x", "x", "output_norm")
    if embedding == hidden:
        return m.logits("x")
    m.linear("x", "e", "project_out", embedding)
    return m.logits("e")

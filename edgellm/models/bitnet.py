"""BitNet b1.58 (arXiv:2402.17764, arXiv:2504.12285): Llama with ternary linears and an RMS norm before
the output matrices of attention and FFN. The 1bitLLM models gate with SiLU, BitNet-2B-4T with ReLU squared.

The models were trained with the inputs of those linears rounded to int8 per token, and run so.
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
        m.norm("attn", "attn", "attn_sub_norm")
        m.linear("attn", "o", "attn_output", hidden)
        m.add("x", "o")

        m.norm("x", "h", "ffn_norm")
        m.ffn("h", "f", sub_norm="ffn_sub_norm")
        m.add("x", "f")

    m.norm("x", "h", "output_norm")
    return m.logits("h")

"""The network that is trained: BitNet b1.58 as edgellm runs it (models/bitnet.py), small, in torch.

Llama with an RMS norm before the output matrices of attention and FFN and a squared-ReLU gate. In the ternary
form every linear of a block rounds its weights to -1, 0, 1 times their mean magnitude and its input to int8
per token on the way forward, and passes gradients straight through (arXiv:2402.17764). The float form is the
same network without rounding.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tools.train.shape import Shape


def ternary(w: torch.Tensor) -> torch.Tensor:
    """w as -1, 0 or 1 times its mean magnitude; the gradient is that of w."""
    scale = w.abs().mean().clamp(min=1e-5)
    return w + ((w / scale).round().clamp(-1, 1) * scale - w).detach()


def int8_rows(x: torch.Tensor) -> torch.Tensor:
    """x as whole 127ths of each row's largest magnitude; the gradient is that of x."""
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return x + ((x * scale).round() / scale - x).detach()


class BitLinear(nn.Linear):
    """A linear without bias, ternary or float."""

    def __init__(self, inputs: int, outputs: int, rounded: bool):
        super().__init__(inputs, outputs, bias=False)
        self.rounded = rounded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(.., inputs) -> (.., outputs)."""
        if not self.rounded:
            return F.linear(x, self.weight)
        return F.linear(int8_rows(x.float()), ternary(self.weight))


class Attention(nn.Module):
    """Causal attention with rotary positions and a norm before the output matrix."""

    def __init__(self, shape: Shape, rounded: bool):
        super().__init__()
        self.shape, self.dim = shape, shape.hidden // shape.heads
        self.q_proj = BitLinear(shape.hidden, shape.heads * self.dim, rounded)
        self.k_proj = BitLinear(shape.hidden, shape.kv_heads * self.dim, rounded)
        self.v_proj = BitLinear(shape.hidden, shape.kv_heads * self.dim, rounded)
        self.attn_sub_norm = nn.RMSNorm(shape.hidden, shape.eps)
        self.o_proj = BitLinear(shape.hidden, shape.hidden, rounded)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (batch, tokens, hidden); cos, sin (tokens, dim / 2)."""
        batch, tokens, _ = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, tokens, -1, self.dim).transpose(1, 2)

        def turned(y: torch.Tensor) -> torch.Tensor:
            a, b = y.float().chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(y.dtype)

        q, k, v = turned(heads(self.q_proj(x))), turned(heads(self.k_proj(x))), heads(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.shape.kv_heads < self.shape.heads
        )
        return self.o_proj(self.attn_sub_norm(mixed.transpose(1, 2).reshape(batch, tokens, -1)))


class Mlp(nn.Module):
    """down(norm(relu(gate x)^2 * up x)); `active` is the share of gates above zero when it last ran."""

    def __init__(self, shape: Shape, rounded: bool):
        super().__init__()
        self.gate_proj = BitLinear(shape.hidden, shape.ffn, rounded)
        self.up_proj = BitLinear(shape.hidden, shape.ffn, rounded)
        self.ffn_sub_norm = nn.RMSNorm(shape.ffn, shape.eps)
        self.down_proj = BitLinear(shape.ffn, shape.hidden, rounded)
        self.active = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(.., hidden) -> (.., hidden)."""
        gate = F.relu(self.gate_proj(x))
        if not self.training:
            self.active = float((gate > 0).float().mean())
        return self.down_proj(self.ffn_sub_norm(gate * gate * self.up_proj(x)))


class Block(nn.Module):
    """A transformer block; names are those of the Hugging Face architecture."""

    def __init__(self, shape: Shape, rounded: bool):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, rounded)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.mlp = Mlp(shape, rounded)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden) -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyBitNet(nn.Module):
    """The whole model. rounded: the ternary form."""

    def __init__(self, shape: Shape, rounded: bool):
        super().__init__()
        self.shape, self.rounded = shape, rounded
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, rounded) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.eps)
        half = shape.hidden // shape.heads // 2
        angles = torch.arange(shape.context)[:, None] * shape.rope_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                deep = (
                    (2 * shape.layers) ** -0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                nn.init.normal_(weight, std=0.02 * deep)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (batch, tokens) -> float logits (batch, tokens, vocab)."""
        x = self.embed_tokens(tokens)
        count = tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:count], self.sin[:count])
        return F.linear(self.norm(x), self.embed_tokens.weight)

    @property
    def parameters_count(self) -> int:
        """Weights, the embedding once."""
        return sum(p.numel() for p in self.parameters())

    def facts(self) -> dict[str, Any]:
        """The shape, for the model card."""
        return {**asdict(self.shape), "parameters": self.parameters_count, "ternary": self.rounded}

"""The closed set of operations that a Program is made of.

Every activation is a float32 buffer of shape (tokens, width), named by a string. Weights are
referred to by their checkpoint name (GGUF naming, e.g. "blk.0.attn_q.weight"); nothing is loaded here.
`T` below is the number of tokens in the call, `pos` the position of each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]
RopeStyle = Literal["interleaved", "half"]
# How a linear rounds its input. "int8": each token's values to whole 127ths of the largest of them, as BitNet
# models are trained (arXiv:2402.17764); None: not at all.
InputRounding = Literal["int8"] | None


@dataclass(frozen=True)
class Weight:
    """A tensor of the checkpoint, or the rows [rows[0], rows[1]) of one (fused QKV, fused gate and up).

    Every value counts times `scale` (the one-element ".scale" tensor beside some ternary weights).
    """

    name: str
    rows: tuple[int, int] | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        return self.name + rows + ("" if self.scale == 1.0 else f" * {self.scale:g}")


@dataclass(frozen=True)
class Op:
    """Base of all ops. `layer` is the transformer block it belongs to, -1 outside of the blocks."""

    layer: int = field(default=-1, kw_only=True)


@dataclass(frozen=True)
class Embed(Op):
    """out[t] = scale * table[tokens[t]]; with index="position": out[t] = scale * table[pos[t] + offset]."""

    out: str
    table: Weight  # (vocab, hidden)
    scale: float = 1.0
    index: Literal["token", "position"] = "token"
    offset: int = 0


@dataclass(frozen=True)
class Norm(Op):
    """Normalise each group of `width` neighbours of x; width = head_dim gives per-head norms (QK norm).

    rms:   out = x / sqrt(mean(x^2) + eps) * (w + weight_offset)
    layer: out = (x - mean(x)) / sqrt(var(x) + eps) * (w + weight_offset) + b
    x and out may be the same buffer.
    """

    x: str
    out: str
    width: int
    eps: float
    weight: Weight | None = None  # (width,)
    bias: Weight | None = None  # (width,)
    kind: Literal["rms", "layer"] = "rms"
    weight_offset: float = 0.0  # 1.0 for Gemma checkpoints that store w - 1


@dataclass(frozen=True)
class Linear(Op):
    """out = x W^T + bias, W of shape (out_width, in_width); x rounded if the op says so."""

    x: str
    out: str
    weight: Weight
    bias: Weight | None = None  # (out_width,)
    rounding: InputRounding = None


@dataclass(frozen=True, eq=False)
class Rope(Op):
    """Rotate pairs of the first 2 * len(inv_freq) dimensions of every head by pos * inv_freq, in place.

    half: pairs (i, i + dims / 2); interleaved: pairs (2 i, 2 i + 1). cos and sin are multiplied by
    `magnitude` (YaRN / LongRoPE attention factor).
    """

    x: str
    heads: int
    head_dim: int
    inv_freq: np.ndarray  # (dims / 2,) float32, scaling already applied
    style: RopeStyle
    magnitude: float = 1.0


@dataclass(frozen=True)
class KvAppend(Op):
    """Append k and v, both (T, kv_heads * head_dim), to the KV cache slot `slot` at pos."""

    k: str
    v: str
    slot: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Attend(Op):
    """Causal attention over cache slot `slot`; query head h reads KV head h // (heads // kv_heads).

    s = scale * q . k, then softcap * tanh(s / softcap) if softcap, then softmax over the positions
    p <= pos, and p > pos - window if window.
    """

    q: str
    out: str
    slot: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Ffn(Op):
    """out = down(norm(act(gate x) * up x)), without a gate: down(norm(act(up x))); biases where given.

    The unit of the flash modes: neuron i is row i of gate and up and column i of down.
    `sub_norm` is an RMS norm over the neurons before `down` (BitNet). `rounding` is that of x and of the
    input of `down`. `threshold`: values of act up to this, of a ReLU, are 0 (FATReLU).
    """

    x: str
    out: str
    up: Weight  # (neurons, hidden)
    down: Weight  # (hidden, neurons)
    neurons: int
    activation: Activation
    gate: Weight | None = None  # (neurons, hidden)
    up_bias: Weight | None = None
    down_bias: Weight | None = None
    sub_norm: Weight | None = None  # (neurons,)
    sub_norm_eps: float = 1e-5
    rounding: InputRounding = None
    threshold: float = 0.0


@dataclass(frozen=True)
class Add(Op):
    """out = x + y; out may be x."""

    x: str
    y: str
    out: str


@dataclass(frozen=True)
class Scale(Op):
    """out = factor * x; out may be x."""

    x: str
    out: str
    factor: float


@dataclass(frozen=True)
class Softcap(Op):
    """out = cap * tanh(x / cap); out may be x."""

    x: str
    out: str
    cap: float


@dataclass(frozen=True)
class Logits(Op):
    """logits = x W^T + bias for the tokens whose logits were asked for; always the last Linear.

    A Softcap or Scale may follow it, on the same buffer.
    """

    x: str
    out: str
    weight: Weight  # (vocab, hidden)
    bias: Weight | None = None

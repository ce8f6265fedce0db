"""ModelBuilder: what the files of this folder are written in. It appends ops and allocates their buffers.

Tensors are named by their GGUF name without the "blk.N." of the current block and without ".weight".
Biases and scales are picked up wherever the file has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast, get_args

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.models.rope import RopeTable
from edgellm.program.ops import (
    Activation,
    Add,
    Attend,
    Embed,
    Ffn,
    KvAppend,
    Linear,
    Logits,
    Norm,
    Op,
    Rope,
    Softcap,
    Weight,
)
from edgellm.program.program import KvSlot, Program


class ModelBuilder:
    """Builds the Program of one checkpoint; the methods are the steps of a decoder-only transformer.

    Buffers: x residual stream, h normed input, q k v attn o of attention, f of the FFN, logits.
    """

    def __init__(self, checkpoint: Checkpoint, context: int):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.layer = -1
        self.program = Program(self.config.architecture, self.config.vocab_size, context)

    def blocks(self) -> Iterator[int]:
        """The numbers of the transformer blocks; ops appended meanwhile belong to that block."""
        for layer in range(self.config.n_layers):
            self.layer = layer
            yield layer
        self.layer = -1

    def slides(self, layer: int) -> bool:
        """Is this a layer whose attention is limited to config.sliding_window?"""
        sliding = self.config.sliding_layers
        return self.config.sliding_window is not None and (sliding is None or sliding[layer])

    # Weights

    def weight(self, name: str, rows: tuple[int, int] | None = None) -> Weight:
        """The tensor `name`.weight, with the factor of `name`.scale if the file has one."""
        scale = 1.0
        if self._has(f"{name}.scale"):
            tensor = self.checkpoint.tensors[self._full(f"{name}.scale")]
            if tensor.elements != 1:
                raise EdgeError(f"{self.checkpoint.path}: the tensor {tensor.name} should hold one number.")
            scale = float(tensor.dequantize().reshape(-1)[0])
        return Weight(self._full(f"{name}.weight"), rows, scale)

    def optional(self, name: str, rows: tuple[int, int] | None = None) -> Weight | None:
        """The tensor `name` (suffix included) if the file has it."""
        return Weight(self._full(name), rows) if self._has(name) else None

    # Ops

    def embed(self, out: str = "x", width: int | None = None) -> None:
        """out (width, hidden size by default) = embedding of the tokens, times config.embedding_scale."""
        self._buffer(out, width or self.config.hidden_size)
        self._add(Embed(out, self.weight("token_embd"), self.config.embedding_scale))

    def embed_positions(self, offset: int) -> None:
        """x += learned embedding of the position + offset."""
        h = self._buffer("h", self.config.hidden_size)
        self._add(Embed(h, self.weight("position_embd"), index="position", offset=offset))
        self.add("x", h)

    def norm(self, x: str, out: str, name: str, width: int | None = None) -> None:
        """RMS norm of x into out; with a `width`, over each group of so many neighbours."""
        self._buffer(out, self.program.buffers[x])
        width = width or self.program.buffers[x]
        offset = self.config.norm_weight_offset
        self._add(Norm(x, out, width, self.config.norm_eps, self.weight(name), weight_offset=offset))

    def layer_norm(self, x: str, out: str, name: str) -> None:
        """Layer norm of x into out, with the weight and bias that the file has."""
        width = self.program.buffers[x]
        self._buffer(out, width)
        weight, bias = self.optional(f"{name}.weight"), self.optional(f"{name}.bias")
        self._add(Norm(x, out, width, self.config.norm_eps, weight, bias, kind="layer"))

    def linear(self, x: str, out: str, name: str, width: int, rows: tuple[int, int] | None = None) -> None:
        """out (width) = x W^T + b, with W the tensor `name` or some rows of it."""
        self._buffer(out, width)
        bias = self.optional(f"{name}.bias", rows)
        self._add(Linear(x, out, self.weight(name, rows), bias, self.config.input_rounding))

    def qkv(self, x: str) -> None:
        """q, k and v from x, by three matrices or by the rows of a fused one."""
        c = self.config
        q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        if self._has("attn_qkv.weight"):
            self.linear(x, "q", "attn_qkv", q, rows=(0, q))
            self.linear(x, "k", "attn_qkv", kv, rows=(q, q + kv))
            self.linear(x, "v", "attn_qkv", kv, rows=(q + kv, q + 2 * kv))
        else:
            self.linear(x, "q", "attn_q", q)
            self.linear(x, "k", "attn_k", kv)
            self.linear(x, "v", "attn_v", kv)

    def rope(self, table: RopeTable) -> None:
        """Rotate q and k in place."""
        c = self.config
        for x, heads in (("q", c.n_heads), ("k", c.n_kv_heads)):
            self._add(Rope(x, heads, c.head_dim, table.inv_freq, c.rope.style, table.magnitude))

    def attend(self) -> None:
        """Append k and v to this block's cache slot and attend: attn = softmax(q K^T) V."""
        c = self.config
        window = c.sliding_window if self.slides(self.layer) else None
        if window is not None and window >= self.program.context_length:
            window = None  # it can never hide a position
        scale = c.attention_scale if c.attention_scale is not None else c.head_dim**-0.5
        self.program.kv_slots.append(KvSlot(c.n_kv_heads, c.head_dim, window))
        slot = len(self.program.kv_slots) - 1
        out = self._buffer("attn", c.n_heads * c.head_dim)
        self._add(KvAppend("k", "v", slot, c.n_kv_heads, c.head_dim))
        self._add(
            Attend("q", out, slot, c.n_heads, c.n_kv_heads, c.head_dim, scale, window, c.attention_softcap)
        )

    def ffn(self, x: str, out: str, gated: bool = True, sub_norm: str | None = None) -> None:
        """out = FFN of x. A gated one has ffn_gate and ffn_up, or ffn_up with the rows of both."""
        c, n = self.config, self.config.ffn_size
        activation = cast(Activation, c.activation)
        if activation not in get_args(Activation):
            raise EdgeError(f"{self.checkpoint.path}: the activation {activation!r} is not supported.")
        gate, up = self.weight("ffn_gate"), self.weight("ffn_up")
        fused = self.checkpoint.tensors.get(up.name)
        if fused is not None and fused.shape[0] == 2 * n:
            gate, up = self.weight("ffn_up", (0, n)), self.weight("ffn_up", (n, 2 * n))
        self._add(
            Ffn(
                x,
                self._buffer(out, c.hidden_size),
                up,
                self.weight("ffn_down"),
                neurons=n,
                activation=activation,
                gate=gate if gated else None,
                up_bias=self.optional("ffn_up.bias"),
                down_bias=self.optional("ffn_down.bias"),
                sub_norm=self.weight(sub_norm) if sub_norm else None,
                sub_norm_eps=c.norm_eps,
                rounding=c.input_rounding,
                threshold=c.activation_threshold,
            )
        )

    def add(self, x: str, y: str) -> None:
        """x += y."""
        self._add(Add(x, y, x))

    def logits(self, x: str) -> Program:
        """logits = x times the output matrix, or the embedding if they are tied. Returns the Program."""
        c = self.config
        name = "output" if self._has("output.weight") else "token_embd"
        out = self._buffer("logits", c.vocab_size)
        self._add(Logits(x, out, self.weight(name), self.optional("output.bias")))
        if c.logits_softcap is not None:
            self._add(Softcap(out, out, c.logits_softcap))
        return self.program

    # Inside

    def _full(self, name: str) -> str:
        return f"blk.{self.layer}.{name}" if self.layer >= 0 else name

    def _has(self, name: str) -> bool:
        return self._full(name) in self.checkpoint.tensors

    def _buffer(self, name: str, width: int) -> str:
        if self.program.buffers.setdefault(name, width) != width:
            raise ValueError(f"buffer {name} is {self.program.buffers[name]} wide, not {width}")
        return name

    def _add(self, op: Op) -> None:
        self.program.ops.append(replace(op, layer=self.layer))

"""The reference executor: every op in a few lines of NumPy float32. It is the specification.

Shapes: T tokens in the call, P positions in the cache so far (the T new ones included). Any other
executor is compared with this one, op by op through `run_op` and end to end through `ReferenceExecutor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.base import Executor, Session
from edgellm.formats.checkpoint import Checkpoint
from edgellm.program.ops import (
    Activation,
    Add,
    Attend,
    Embed,
    Ffn,
    InputRounding,
    KvAppend,
    Linear,
    Logits,
    Norm,
    Op,
    Rope,
    Scale,
    Softcap,
    Weight,
)
from edgellm.program.program import KvSlot, Program


class Weights:
    """Dequantised weights of a checkpoint, float32, each kept once it was used."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._kept: dict[Weight, np.ndarray] = {}

    def __call__(self, weight: Weight) -> np.ndarray:
        """The whole weight, of the shape the op's docstring gives."""
        if weight not in self._kept:
            self._kept[weight] = self.rows(weight, slice(None))
        return self._kept[weight]

    def rows(self, weight: Weight, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows of it, not kept: for embeddings."""
        if weight.rows is not None:
            rows = np.arange(*weight.rows)[rows]
        tensor = self.checkpoint.tensors[weight.name]
        values = tensor.dequantize(rows) if len(tensor.shape) > 1 else tensor.dequantize()[rows]
        return values if weight.scale == 1.0 else values * np.float32(weight.scale)


class KvCache:
    """Keys and values of one slot, (capacity, kv_heads, head_dim) each; the capacity grows by doubling."""

    def __init__(self, slot: KvSlot, dtype: type = np.float32):
        self.keys: np.ndarray = np.zeros((16, slot.kv_heads, slot.head_dim), dtype)
        self.values = np.zeros_like(self.keys)

    def write(self, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Store k and v, (T, kv_heads, head_dim), at `positions`."""
        while positions[-1] >= len(self.keys):
            self.keys = np.concatenate([self.keys, np.zeros_like(self.keys)])
            self.values = np.concatenate([self.values, np.zeros_like(self.values)])
        self.keys[positions], self.values[positions] = k, v

    def read(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the first `length` positions, float32."""
        return self.keys[:length].astype(np.float32), self.values[:length].astype(np.float32)


@dataclass
class State:
    """All that an op can see. Buffers are (T, width) float32."""

    weights: Weights
    tokens: np.ndarray  # (T,) int64
    positions: np.ndarray  # (T,) int64, consecutive
    caches: list[KvCache] = field(default_factory=list)
    buffers: dict[str, np.ndarray] = field(default_factory=dict)
    all_logits: bool = True  # False: Logits computes the last token only

    def weight(self, weight: Weight | None) -> np.ndarray | None:
        return None if weight is None else self.weights(weight)


def run_op(op: Op, state: State) -> None:
    """Execute one op: read its buffers from `state`, write its result there."""
    OPS[type(op)](op, state)


def embed(op: Embed, s: State) -> None:
    """out (T, hidden) = scale * table[index], index = tokens, or positions + offset."""
    index = s.tokens if op.index == "token" else s.positions + op.offset
    s.buffers[op.out] = s.weights.rows(op.table, index) * np.float32(op.scale)


def norm(op: Norm, s: State) -> None:
    """Per group g of `width` values of x (T, groups * width):
    rms: g / sqrt(mean(g^2) + eps), layer: (g - mean(g)) / sqrt(var(g) + eps); then * (w + offset) + b.
    """
    x = s.buffers[op.x]
    g = x.reshape(len(x), -1, op.width)
    if op.kind == "layer":
        g = g - g.mean(-1, keepdims=True)
    g = g / np.sqrt(np.mean(g * g, -1, keepdims=True) + np.float32(op.eps))
    if op.weight is not None:
        g = g * (s.weights(op.weight) + np.float32(op.weight_offset))
    if op.bias is not None:
        g = g + s.weights(op.bias)
    s.buffers[op.out] = g.reshape(x.shape)


def matmul(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x (T, in) times w (out, in) transposed, plus bias (out,)."""
    y = x @ w.T
    return y if bias is None else y + bias


def rounded(x: np.ndarray, rounding: InputRounding) -> np.ndarray:
    """x (T, in), with "int8" as whole multiples of a 127th of each row's largest magnitude."""
    if rounding is None:
        return x
    scale = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    return np.round(x * scale) / scale


def linear(op: Linear, s: State) -> None:
    """out (T, out) = x (T, in) W^T + b, W (out, in)."""
    x = rounded(s.buffers[op.x], op.rounding)
    s.buffers[op.out] = matmul(x, s.weights(op.weight), s.weight(op.bias))


def rope(op: Rope, s: State) -> None:
    """Each pair (a, b) of each head turns by t = pos * inv_freq: (a cos t - b sin t, b cos t + a sin t),
    cos and sin times `magnitude`. x (T, heads * head_dim), in place.
    """
    x = s.buffers[op.x].reshape(len(s.positions), op.heads, op.head_dim).copy()
    angle = s.positions[:, None, None].astype(np.float32) * op.inv_freq
    cos, sin = np.cos(angle) * np.float32(op.magnitude), np.sin(angle) * np.float32(op.magnitude)
    n = len(op.inv_freq)
    first, second = (slice(0, n), slice(n, 2 * n))
    if op.style == "interleaved":
        first, second = slice(0, 2 * n, 2), slice(1, 2 * n, 2)
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin
    s.buffers[op.x] = x.reshape(len(s.positions), -1)


def kv_append(op: KvAppend, s: State) -> None:
    """cache[slot] at the T positions = k, v, each (T, kv_heads * head_dim)."""
    k, v = (s.buffers[name].reshape(-1, op.kv_heads, op.head_dim) for name in (op.k, op.v))
    s.caches[op.slot].write(s.positions, k, v)


def attend(op: Attend, s: State) -> None:
    """Per query head h, with K and V (P, head_dim) of KV head h // (heads / kv_heads):
    out (T, head_dim) = softmax(mask(softcap(scale * q K^T))) V, where position p is visible to the
    query at pos if p <= pos and, with a window, p > pos - window.
    """
    keys, values = s.caches[op.slot].read(int(s.positions[-1]) + 1)
    q = s.buffers[op.q].reshape(-1, op.heads, op.head_dim)
    behind = s.positions[:, None] - np.arange(len(keys))
    visible = (behind >= 0) & (behind < (op.window or len(keys)))
    out = np.empty_like(q)
    for h in range(op.heads):
        kv = h // (op.heads // op.kv_heads)
        scores = np.float32(op.scale) * (q[:, h] @ keys[:, kv].T)
        if op.softcap is not None:
            scores = softcapped(scores, op.softcap)
        out[:, h] = softmax(np.where(visible, scores, np.float32(-np.inf))) @ values[:, kv]
    s.buffers[op.out] = out.reshape(len(q), -1)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softcapped(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap))


def activate(x: np.ndarray, kind: Activation) -> np.ndarray:
    """silu: x / (1 + e^-x). gelu: x/2 (1 + erf(x / sqrt 2)). relu: max(x, 0). relu2: max(x, 0)^2.
    gelu_tanh: x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    if kind == "silu":
        return x * np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5)))  # the same, without overflow
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
    if kind == "gelu":
        erf = np.vectorize(math.erf, otypes=[np.float32])
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    positive = np.maximum(x, 0)
    return positive * positive if kind == "relu2" else positive


def _above(x: np.ndarray, threshold: float) -> np.ndarray:
    """x, with 0 for what is not above a threshold, if there is one."""
    return np.where(x > np.float32(threshold), x, np.float32(0)) if threshold else x


def ffn(op: Ffn, s: State) -> None:
    """z (T, neurons) = act(x G^T) * (x U^T + b), or act(x U^T + b) without a gate;
    out (T, hidden) = rms_norm(z) D^T + b, the norm only with `sub_norm`.
    G and U are (neurons, hidden), D is (hidden, neurons).
    """
    x = rounded(s.buffers[op.x], op.rounding)
    up = matmul(x, s.weights(op.up), s.weight(op.up_bias))
    if op.gate is None:
        z = _above(activate(up, op.activation), op.threshold)
    else:
        z = _above(activate(matmul(x, s.weights(op.gate), None), op.activation), op.threshold) * up
    if op.sub_norm is not None:
        z = (
            z
            / np.sqrt(np.mean(z * z, -1, keepdims=True) + np.float32(op.sub_norm_eps))
            * s.weights(op.sub_norm)
        )
    z = rounded(z, op.rounding)
    s.buffers[op.out] = matmul(z, s.weights(op.down), s.weight(op.down_bias))


def add(op: Add, s: State) -> None:
    """out = x + y."""
    s.buffers[op.out] = s.buffers[op.x] + s.buffers[op.y]


def scale(op: Scale, s: State) -> None:
    """out = factor * x."""
    s.buffers[op.out] = np.float32(op.factor) * s.buffers[op.x]


def softcap(op: Softcap, s: State) -> None:
    """out = cap * tanh(x / cap)."""
    s.buffers[op.out] = softcapped(s.buffers[op.x], op.cap)


def logits(op: Logits, s: State) -> None:
    """out (T or 1, vocab) = x W^T + b, W (vocab, hidden); of the last token unless all are asked for."""
    x = s.buffers[op.x] if s.all_logits else s.buffers[op.x][-1:]
    s.buffers[op.out] = matmul(x, s.weights(op.weight), s.weight(op.bias))


OPS: dict[type[Op], Callable[[Any, State], None]] = {
    Embed: embed,
    Norm: norm,
    Linear: linear,
    Rope: rope,
    KvAppend: kv_append,
    Attend: attend,
    Ffn: ffn,
    Add: add,
    Scale: scale,
    Softcap: softcap,
    Logits: logits,
}


class ReferenceExecutor(Executor):
    """Runs a Program op by op. kv_dtype=np.float16 rounds the cache as the native executor does."""

    name = "reference"

    def __init__(self, program: Program, checkpoint: Checkpoint, kv_dtype: type = np.float32):
        self.program = program
        self.weights = Weights(checkpoint)
        self.kv_dtype = kv_dtype

    def new_session(self, context: int) -> Session:
        if not 0 < context <= self.program.context_length:
            raise EdgeError(
                f"A context of {context} tokens is outside of what the model can hold; "
                f"choose --ctx between 1 and {self.program.context_length}."
            )
        return ReferenceSession(self, context)

    def describe(self) -> dict[str, str]:
        tensors = self.weights.checkpoint.tensors
        return {name: f"NumPy float32, dequantised from {tensor.type}" for name, tensor in tensors.items()}


class ReferenceSession(Session):
    """One sequence in the reference executor; a slot's cache rows beyond the position are never read."""

    def __init__(self, executor: ReferenceExecutor, context: int):
        super().__init__(context, executor.program.vocab_size, executor)
        self._reference = executor
        self.caches = [KvCache(slot, executor.kv_dtype) for slot in executor.program.kv_slots]

    def _forward(self, tokens: np.ndarray, all_logits: bool) -> np.ndarray:
        positions = np.arange(self.position, self.position + len(tokens))
        state = State(self._reference.weights, tokens, positions, self.caches, all_logits=all_logits)
        for op in self._reference.program.ops:
            run_op(op, state)
        result = state.buffers["logits"]
        return result if all_logits else result[-1]

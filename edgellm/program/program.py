"""Program: a model as a flat list of ops in execution order, independent of who runs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgellm.program.ops import Op


@dataclass(frozen=True)
class KvSlot:
    """KV cache of one attention layer: keys and values of (kv_heads, head_dim) per position."""

    kv_heads: int
    head_dim: int
    window: int | None = None  # only the last `window` positions are ever read


@dataclass
class Program:
    """Ops over named float32 buffers of shape (tokens, width). The result is the buffer "logits"."""

    architecture: str
    vocab_size: int
    context_length: int
    ops: list[Op] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)  # name -> width
    kv_slots: list[KvSlot] = field(default_factory=list)

"""Causal attention over the KV cache: new keys and values go in (append), then every row attends."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels import attention_append, attention_decode, attention_prefill
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import helper


def build(target: Target, part: str, kv: str, dim: int, group: int = 1) -> Callable[..., None]:
    """The kernels attention: part "append" or "attend", for a KV cache of kind `kv` (kv_layout.KINDS)
    and a head dimension. group: query heads that share a KV head."""
    if part == "append":
        return attention_append.build(target, kv, dim)
    decode = helper(attention_decode.build(target, kv, group, dim))
    prefill = helper(attention_prefill.build(target, kv, group, dim))

    def attend(args: int, state: int, thread: int, threads: int) -> None:
        decode(args, state, thread, threads)
        prefill(args, state, thread, threads)

    return attend

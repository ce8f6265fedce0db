"""A sequence of the native executor: its KV cache and its position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.executors.base import Session
from edgellm.executors.native.cost import kv_bytes_before
from edgellm.kernels.kv_layout import CHUNK
from edgellm.kernels.memory import address, reserve

if TYPE_CHECKING:
    from edgellm.executors.native.executor import NativeExecutor


class NativeSession(Session):
    """One sequence of the native executor. Its KV cache is a virtual reservation for the whole context; it
    takes memory as positions fill it."""

    def __init__(self, executor: NativeExecutor, context: int):
        super().__init__(context, executor.program.vocab_size, executor)
        self._native = executor
        chunk = kv_bytes_before(executor.program, executor.kv)[-1]
        self._per_position = chunk // CHUNK
        self._cache = reserve(-(-context // CHUNK) * chunk, huge_pages=True, what="the KV cache")

    @property
    def kv_address(self) -> int:
        return address(self._cache)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache that hold positions consumed so far."""
        return self.position * self._per_position

    def _forward(self, tokens: np.ndarray, all_logits: bool) -> np.ndarray:
        logits = self._native.run([(self, tokens)], all_logits)
        return logits if all_logits else logits[0]

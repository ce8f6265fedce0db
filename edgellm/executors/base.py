"""What every executor offers: sessions that turn tokens into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from edgellm.errors import EdgeError


class Session(ABC):
    """One sequence: its KV cache and its position. Made by Executor.new_session."""

    def __init__(self, context: int, vocab_size: int, executor: Executor | None = None):
        self.context = context  # tokens that fit
        self.vocab_size = vocab_size
        self.position = 0  # tokens consumed so far
        self.executor = executor  # whose session it is

    def forward(self, tokens: Sequence[int] | np.ndarray, all_logits: bool = False) -> np.ndarray:
        """Consume tokens and return float32 logits: (vocab,) of the last, or (len(tokens), vocab) of all.

        Raises EdgeError for an empty call, a token outside the vocabulary or a full context.
        """
        ids = self.checked(tokens)
        logits = self._forward(ids, all_logits)
        self.position += int(ids.size)
        return logits

    def checked(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tokens as (T,) int64, if this session can consume them; EdgeError as for `forward`."""
        ids = np.ascontiguousarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or ids.size == 0:
            raise EdgeError("The prompt is empty: give at least one token.")
        if self.position + ids.size > self.context:
            raise EdgeError(
                f"The prompt of {self.position + ids.size} tokens is longer than the context of "
                f"{self.context}; shorten it or raise --ctx."
            )
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise EdgeError(f"A token id is outside the vocabulary of {self.vocab_size}.")
        return ids

    def prefill(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits (vocab,) after the last of `tokens`."""
        return self.forward(tokens)

    def decode(self, token: int) -> np.ndarray:
        """Logits (vocab,) after one more token."""
        return self.forward([token])

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on (0 empties the session)."""
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind from {self.position} to {position}")
        self.position = position

    @abstractmethod
    def _forward(self, tokens: np.ndarray, all_logits: bool) -> np.ndarray:
        """tokens: (T,) int64, checked. Returns (vocab,) or (T, vocab) float32, owned by the caller."""


class Executor(ABC):
    """Runs one Program with the weights of one Checkpoint. Close it to stop its threads."""

    name: str

    @abstractmethod
    def new_session(self, context: int) -> Session:
        """A fresh sequence that can hold `context` tokens."""

    def forward_batch(
        self, sessions: Sequence[Session], tokens: Sequence[Sequence[int] | np.ndarray]
    ) -> np.ndarray:
        """Consume tokens[i] in sessions[i], for S different sessions of this executor, of any lengths: the
        prompt of one beside the next token of others. Returns the logits (S, vocab) float32 after the last
        token of each.

        All is checked before any session moves: EdgeError as for Session.forward, ValueError for sessions
        that are not different ones of this executor, or not as many as there are lists of tokens.
        """
        if not sessions or len(sessions) != len(tokens):
            raise ValueError(f"{len(sessions)} sessions were given tokens for {len(tokens)}")
        if len({id(session) for session in sessions}) != len(sessions):
            raise ValueError("a session occurs twice in one batch")
        if any(session.executor is not self for session in sessions):
            raise ValueError("a session of another executor is in the batch")
        ids = [session.checked(t) for session, t in zip(sessions, tokens, strict=True)]
        logits = self._forward_batch(sessions, ids)
        for session, consumed in zip(sessions, ids, strict=True):
            session.position += int(consumed.size)
        return logits

    def decode_batch(self, sessions: Sequence[Session], tokens: Sequence[int]) -> np.ndarray:
        """One more token for each of S different sessions: logits (S, vocab) float32. See forward_batch."""
        return self.forward_batch(sessions, [[token] for token in tokens])

    def _forward_batch(self, sessions: Sequence[Session], ids: Sequence[np.ndarray]) -> np.ndarray:
        """As forward_batch, of checked (T,) int64 arrays; moves no position. One sequence after another."""
        return np.stack([s._forward(tokens, False) for s, tokens in zip(sessions, ids, strict=True)])

    def close(self) -> None:
        """Release threads and memory; sessions of this executor must not be used afterwards."""

    def describe(self) -> dict[str, str]:
        """For `inspect`: weight name -> the path it takes here ("tile16x4 4-bit, avx512 vnni", ...)."""
        return {}

"""The token loop: prompt in, one sampled token after another out, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.executors.base import Session
    from edgellm.text.sampling import Sampler
    from edgellm.text.stopping import StopChecker
    from edgellm.text.tokenizer import Tokenizer

# length: max_tokens were made; stop: a stop string; end_of_turn: the model's own end token;
# context: the session is full.
StopReason = Literal["length", "stop", "end_of_turn", "context"]

PREFILL_TOKENS = 512  # per call of the executor, so that an interrupt is seen between two calls


@dataclass(frozen=True)
class Event:
    """One sampled token and the text that became certain with it (often empty, sometimes of several tokens).

    token is None for an end token; time_ns is time.perf_counter_ns() when the token was sampled;
    stop_reason is set on the last event only.
    """

    text: str
    token: int | None
    time_ns: int
    stop_reason: StopReason | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds and tokens per second. decode counts from the second token on; None with fewer than two."""

    load_s: float
    ttft_s: float  # from the call to the first sampled token; loading not included
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class Generation:
    """A finished run. tokens are the generated ids without the end token; prompt_tokens is a count."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    stop_reason: StopReason
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TokenHistory:
    """A session together with the tokens it holds, so that a prompt that starts alike is not run again."""

    def __init__(self, session: Session):
        self.session = session
        self._tokens: list[int] = []

    @property
    def tokens(self) -> list[int]:
        """The ids that the session's KV cache holds, also after an interrupted call."""
        return self._tokens[: self.session.position]

    def prefill(self, prompt: Sequence[int]) -> tuple[np.ndarray, int]:
        """Logits (vocab,) float32 after `prompt`, and how many of its tokens had to be run.

        Keeps the longest common prefix of the session and the prompt. Raises EdgeError for an empty
        prompt and for one that is longer than the context.
        """
        if not prompt:
            raise EdgeError("The prompt is empty: give at least one token.")
        if len(prompt) > self.session.context:
            raise EdgeError(
                f"The prompt of {len(prompt)} tokens is longer than the context of {self.session.context}; "
                "shorten it or raise --ctx."
            )
        # the last token is always run again: its logits are what the caller wants
        kept = min(_common_prefix(self.tokens, prompt), len(prompt) - 1)
        self.session.rewind(kept)
        self._tokens = list(prompt)
        for start in range(kept, len(prompt), PREFILL_TOKENS):
            logits = self.session.prefill(prompt[start : start + PREFILL_TOKENS])
        return logits, len(prompt) - kept

    def decode(self, token: int) -> np.ndarray:
        """Logits (vocab,) float32 after one more token."""
        del self._tokens[self.session.position :]
        self._tokens.append(token)
        return self.session.decode(token)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))

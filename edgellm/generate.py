"""The token loop: prompt in, one sampled token after another out, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.executors.base import Session
    from edgellm.text.sampling import Sampler
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

    def prefill(
        self, prompt: Sequence[int], cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[np.ndarray | None, int]:
        """Logits (vocab,) float32 after `prompt`, and how many of its tokens had to be run.

        Keeps the longest common prefix of the session and the prompt. cancelled is asked every
        PREFILL_TOKENS tokens; the logits are None when it said yes. Raises EdgeError for an empty prompt
        and for one that is longer than the context.
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
            if cancelled():
                return None, start - kept
            logits = self.session.prefill(prompt[start : start + PREFILL_TOKENS])
        return logits, len(prompt) - kept

    def decode(self, token: int) -> np.ndarray:
        """Logits (vocab,) float32 after one more token."""
        del self._tokens[self.session.position :]
        self._tokens.append(token)
        return self.session.decode(token)


class Run:
    """One generation: iterate it once for its events, or call finish(). Nothing is computed before that.

    history: the session to use; what it holds of the prompt is not run again. stop: strings that end the
    text before them. continuation: the text goes on after the prompt's own (no chat template), so that a
    space in front of it stays.
    """

    def __init__(
        self,
        history: TokenHistory,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        sampler: Sampler,
        max_tokens: int,
        stop: Sequence[str] = (),
        continuation: bool = True,
        load_s: float = 0.0,
    ):
        from edgellm.text.detokenize import StreamDecoder
        from edgellm.text.stopping import StopChecker

        if max_tokens < 1:
            raise EdgeError(f"The number of tokens to generate is {max_tokens}; it must be at least 1.")
        self.history = history
        self.prompt = list(prompt)
        self.tokens: list[int] = []  # generated so far, without the end token
        self.cancelled = False  # set it to end the run before the next token, without a stop reason
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._decoder = StreamDecoder(tokenizer, continuation=continuation)
        self._checker = StopChecker(stop, tokenizer.end_ids)
        self._load_s = load_s
        self._prefilled = 0  # prompt tokens that had to be run
        self._started_ns = self._prefilled_ns = self._first_ns = self._last_ns = 0

    def __iter__(self) -> Iterator[Event]:
        self._started_ns = time.perf_counter_ns()
        logits, self._prefilled = self.history.prefill(self.prompt, lambda: self.cancelled)
        self._prefilled_ns = time.perf_counter_ns()
        for token in self.prompt:
            self._sampler.accept(token)
        while logits is not None and not self.cancelled:
            token = self._sampler.sample(logits)
            now = time.perf_counter_ns()
            self._first_ns = self._first_ns or now
            if self._checker.is_end(token):
                yield Event(self._rest(), None, now, "end_of_turn")
                return
            self._last_ns = now
            self._sampler.accept(token)
            self.tokens.append(token)
            text = self._checker.push(self._decoder.push(token))
            reason = self._stop_reason()
            if reason:
                rest = self._rest()
                # what was held back may complete a stop string
                yield Event(text + rest, token, now, "stop" if self._checker.stopped else reason)
                return
            yield Event(text, token, now)
            logits = self.history.decode(token)

    def _stop_reason(self) -> StopReason | None:
        if self._checker.stopped:
            return "stop"
        if len(self.tokens) == self._max_tokens:
            return "length"
        session = self.history.session
        return "context" if session.position == session.context else None

    def _rest(self) -> str:
        return self._checker.push(self._decoder.flush()) + self._checker.flush()

    def pieces(self) -> Iterator[str]:
        """The text in pieces, as each becomes certain."""
        return (event.text for event in self if event.text)

    def finish(self) -> Generation:
        """Run to the end."""
        events = list(self)
        return self.result("".join(event.text for event in events), events[-1].stop_reason)

    def result(self, text: str, stop_reason: StopReason | None) -> Generation:
        """What was generated: `text` joined from the events, and the reason on the last of them."""
        if stop_reason is None:
            raise ValueError("the generation has not ended")
        return Generation(text, list(self.tokens), len(self.prompt), stop_reason, self.timings())

    def timings(self) -> Timings:
        """Timings so far; at least one token must have been sampled."""
        later, decode_ns = len(self.tokens) - 1, self._last_ns - self._first_ns
        return Timings(
            load_s=self._load_s,
            ttft_s=(self._first_ns - self._started_ns) / 1e9,
            prefill_tokens_per_second=self._prefilled * 1e9 / max(1, self._prefilled_ns - self._started_ns),
            decode_tokens_per_second=later * 1e9 / decode_ns if later > 0 and decode_ns > 0 else None,
        )


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))

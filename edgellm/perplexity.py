"""Perplexity of a model on a text, by the method of llama-perplexity, so that the figures compare.

The text is cut into chunks of n_ctx tokens, each run from an empty context with its first token
replaced by BOS (where the tokenizer adds one). Positions n_ctx // 2 to n_ctx - 2 are scored on their
successor; what does not fill a chunk is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.executors.base import Session

LOGIT_BYTES = 64 << 20  # logits held at a time


@dataclass(frozen=True)
class Estimate:
    """Perplexity after `chunks` chunks with `tokens` scored tokens.

    stderr is perplexity times the standard error of the mean negative log-likelihood, as
    llama-perplexity prints it after "+/-".
    """

    perplexity: float
    stderr: float
    tokens: int
    chunks: int


def chunk_count(tokens: Sequence[int] | np.ndarray, n_ctx: int) -> int:
    """Whole chunks of n_ctx tokens. Raises EdgeError where llama-perplexity refuses: fewer than two."""
    if len(tokens) < 2 * n_ctx:
        raise EdgeError(
            f"The text has {len(tokens)} tokens; perplexity with --ctx {n_ctx} needs at least {2 * n_ctx}, "
            "so give a longer text or a smaller --ctx."
        )
    return len(tokens) // n_ctx


def estimates(
    session: Session,
    tokens: Sequence[int] | np.ndarray,
    n_ctx: int,
    bos: int | None,
    chunks: int | None = None,
) -> Iterator[Estimate]:
    """Yield the running estimate after each chunk; the last one is the result.

    tokens: the whole text, tokenized as the tokenizer does by default (with BOS in front, if it adds
    one). bos: None if the tokenizer adds none. chunks: only the first so many. The session must hold
    n_ctx tokens; it is emptied before each chunk.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    count = chunk_count(ids, n_ctx)
    total = squares = 0.0
    scored = 0
    for done in range(min(count, chunks or count)):
        chunk = ids[done * n_ctx : (done + 1) * n_ctx]
        losses = chunk_losses(session, chunk, bos)
        total += float(losses.sum())
        squares += float((losses * losses).sum())
        scored += losses.size
        mean = total / scored
        variance = squares / scored - mean * mean
        error = math.sqrt(variance / (scored - 1)) if variance > 0 and scored > 1 else 0.0
        perplexity = math.exp(mean)
        yield Estimate(perplexity, error * perplexity, scored, done + 1)


def chunk_losses(session: Session, chunk: np.ndarray, bos: int | None) -> np.ndarray:
    """Negative log-likelihoods, float64 of shape (n_ctx - 1 - n_ctx // 2,), of a chunk's second half."""
    n_ctx = len(chunk)
    first = n_ctx // 2
    inputs = chunk.copy()
    if bos is not None:
        inputs[0] = bos
    session.rewind(0)
    if first:
        session.prefill(inputs[:first])
    rows = max(1, LOGIT_BYTES // (4 * session.vocab_size))
    losses = []
    for start in range(first, n_ctx - 1, rows):
        stop = min(start + rows, n_ctx - 1)
        logits = session.forward(inputs[start:stop], all_logits=True)
        losses.append(negative_log_likelihood(logits, chunk[start + 1 : stop + 1]))
    return np.concatenate(losses)


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[target] per row; logits (T, vocab) float32, targets (T,), result (T,) float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    wanted = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)) - wanted

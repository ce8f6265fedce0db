"""Which neurons fire on a text: how often each does, and from which magnitude on one counts as firing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint

CONTEXT = 512  # tokens that are run together
MOST_TOKENS = 16384  # that are looked at
FEWEST_TOKENS = 64
_OCTAVE = 64  # steps of a doubling that magnitudes are told apart by
_LOWEST, _HIGHEST = -24, 16  # powers of two
Progress = Callable[[int, int], None]  # tokens done, of how many


@dataclass(frozen=True)
class Firing:
    """frequency: float32 (layers, neurons), share of the tokens that each fired on; tokens: how many;
    thresholds: float (layers,), magnitudes of act(gate) up to which a neuron does not fire, None for 0."""

    frequency: np.ndarray
    tokens: int
    thresholds: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """int32 (layers, neurons): the neurons of each layer, those that fire most first."""
        return np.argsort(-self.frequency, axis=1, kind="stable").astype(np.int32)


def firing(
    checkpoint: Checkpoint, text: str | Sequence[int], threads: int, *, sparsity: float | None = None,
    progress: Progress | None = None,
) -> Firing:  # fmt: skip
    """Run the model over a text (or token ids), with all weights in memory, and see who fires.

    sparsity: share of the neurons' activations that shall not count, from 0 to 1, for activations that are
    never 0: the threshold of a layer is that quantile of their magnitudes (CATS, arXiv 2404.08763). Raises
    EdgeError for a text that is too short.
    """
    chunks = _chunks(checkpoint, text)
    thresholds = None
    total = sum(map(len, chunks))
    passes = 1 if sparsity is None else 2

    def report(done: int) -> None:
        if progress:
            progress(done, passes * total)

    activation = ACTIVATIONS[checkpoint.config.activation]
    layers, neurons = checkpoint.config.n_layers, checkpoint.config.ffn_size
    if sparsity is not None:
        counts = np.zeros((layers, (_HIGHEST - _LOWEST) * _OCTAVE), np.int64)

        def magnitudes(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
            with np.errstate(divide="ignore"):
                steps = (np.log2(np.abs(activation(gates))) - _LOWEST) * _OCTAVE
            places = np.clip(steps, 0, counts.shape[1] - 1).astype(np.int64)
            counts[layer] += np.bincount(places.ravel(), minlength=counts.shape[1])

        watch(checkpoint, chunks, threads, magnitudes, report)
        reached = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True) >= sparsity
        thresholds = 2.0 ** (_LOWEST + (reached.argmax(axis=1) + 1) / _OCTAVE)
    fired = np.zeros((layers, neurons), np.int64)
    limit = checkpoint.config.activation_threshold
    limits = np.full(layers, limit) if thresholds is None else thresholds

    def count(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
        fired[layer] += (np.abs(activation(gates)) > limits[layer]).sum(axis=0)

    watch(checkpoint, chunks, threads, count, lambda done: report(done + (passes - 1) * total))
    return Firing((fired / total).astype(np.float32), total, thresholds)


def watch(
    checkpoint: Checkpoint, chunks: Sequence[Sequence[int]], threads: int, see: Callable[..., None],
    report: Callable[[int], None],
) -> None:  # fmt: skip
    """Show see(layer, inputs, gates) what the FFNs of all tokens get, as NativeExecutor's watch does."""
    from edgellm.executors.native import NativeExecutor
    from edgellm.models import build_program

    longest = max(map(len, chunks))
    executor = NativeExecutor(build_program(checkpoint, longest), checkpoint, threads, watch=see)
    done = 0
    try:
        for chunk in chunks:
            executor.new_session(longest).forward(np.array(chunk), all_logits=True)
            done += len(chunk)
            report(done)
    finally:
        executor.close()


def _chunks(checkpoint: Checkpoint, text: str | Sequence[int]) -> list[list[int]]:
    from edgellm.text.tokenizer import load_tokenizer

    context = min(CONTEXT, checkpoint.config.context_length)
    tokens = list(load_tokenizer(checkpoint).encode(text) if isinstance(text, str) else text)[:MOST_TOKENS]
    if len(tokens) < FEWEST_TOKENS:
        raise EdgeError(
            f"The text has {len(tokens)} tokens, too few to see which neurons fire; give one of at least "
            f"{FEWEST_TOKENS}, better of thousands."
        )
    return [tokens[i : i + context] for i in range(0, len(tokens), context)]


def _silu(x: np.ndarray) -> Any:
    return x / (1 + np.exp(-x))


def _gelu_tanh(x: np.ndarray) -> Any:
    return x / (1 + np.exp(-1.5957691216057308 * (x + 0.044715 * x**3)))


def _gelu(x: np.ndarray) -> Any:
    return _gelu_tanh(x)  # near enough to choose a threshold by


ACTIVATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}

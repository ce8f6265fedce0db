"""What it costs a model that who fires is predicted: its perplexity, of each layer by itself and of all.

Neurons that are not predicted are dropped where the model runs as it is, so that a single layer can be looked
at, and a model larger than memory need not be packed first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.errors import EdgeError
from edgellm.flash.predictor import Weights
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.edge import Bundle
from edgellm.perplexity import chunk_losses

MOST_TOKENS = 2048  # that are run, once for each layer
FEWEST = 3  # of a chunk


@dataclass(frozen=True)
class Cost:
    """Perplexities: of the model as it is; with each layer's neurons predicted, and no other's; with those of
    all layers. tokens: that they are of."""

    without: float
    layers: tuple[float, ...]
    all: float
    tokens: int


def measure(
    checkpoint: Checkpoint, bundle: Bundle, weights: Sequence[Weights], chunks: Sequence[Sequence[int]],
    threads: int, bos: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> Cost:  # fmt: skip
    """The cost of predictors `weights` for the layers of `bundle`, which was packed from `checkpoint`, on the
    first of `chunks`, as edgellm/perplexity.py has it: of each chunk's second half, with `bos` in front if
    the tokenizer adds one. Raises EdgeError where all chunks are too short."""
    from edgellm.executors.native import NativeExecutor
    from edgellm.models import build_program

    some = [np.array(chunk) for chunk in _first(chunks) if len(chunk) >= FEWEST]
    if not some:
        raise EdgeError("There is no text to measure perplexity on.")
    order = bundle.order
    assert order is not None
    on: set[int] = set()

    def drop(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
        """What is not predicted has a gate of 0, which all activations leave at 0."""
        if layer in on:
            gates[:, order[layer]] *= weights[layer].scores(inputs) > 0

    longest = max(map(len, some))
    executor = NativeExecutor(build_program(checkpoint, longest), checkpoint, threads, watch=drop)
    session = executor.new_session(longest)

    def perplexity(*layers: int) -> float:
        on.clear()
        on.update(layers)
        found = [chunk_losses(session, chunk, bos) for chunk in some]
        return math.exp(float(np.mean(np.concatenate(found))))

    count = len(weights)
    tell = progress or (lambda done, total: None)
    found: list[float] = []
    try:
        for run in [(), *((layer,) for layer in range(count)), tuple(range(count))]:
            found.append(perplexity(*run))
            tell(len(found), count + 2)
    finally:
        executor.close()
    scored = sum(len(chunk) - 1 - len(chunk) // 2 for chunk in some)
    return Cost(found[0], tuple(found[1:-1]), found[-1], scored)


def _first(chunks: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Chunks up to MOST_TOKENS tokens, at least one."""
    taken: list[Sequence[int]] = []
    for chunk in chunks:
        if taken and sum(map(len, taken)) + len(chunk) > MOST_TOKENS:
            break
        taken.append(chunk)
    return taken

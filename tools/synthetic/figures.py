"""What the neurons of a synthetic model really did: how sparse, how skewed, how alike from token to token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 5  # tokens
MOST_OF = 0.8  # of the activations


@dataclass(frozen=True)
class Figures:
    """Shares, 0 to 1. All but `hot` and `again` are of the neurons of an FFN and per token.

    active: neurons that fired. hot: fewest neurons that make 80 % of the activations. new: neurons that fired
    and had not for any of the last 1, 2 ... WINDOW tokens. again: active neurons that fire for the next token
    too.
    """

    active: float
    hot: float
    new: tuple[float, ...]
    again: float


def measure(fired: np.ndarray) -> Figures:
    """Figures of bool (T, neurons), T > WINDOW; `new` and `again` are of the tokens from WINDOW on."""
    tokens, neurons = fired.shape
    made = np.sort(fired.sum(0))[::-1].cumsum()
    now, before = fired[WINDOW:], fired[WINDOW - 1 : -1]
    seen = np.zeros_like(now)
    new = []
    for back in range(1, WINDOW + 1):
        seen |= fired[WINDOW - back : tokens - back]
        new.append(float(np.mean(now & ~seen)))
    return Figures(
        active=float(np.mean(fired)),
        hot=(int(np.searchsorted(made, MOST_OF * made[-1])) + 1) / neurons,
        new=tuple(new),
        again=int(np.count_nonzero(now & before)) / max(1, int(np.count_nonzero(before))),
    )


def table(model: Figures, layers: Sequence[Figures]) -> str:
    """The figures in percent, a line for each layer, then the range of the layers and the whole model."""
    rows = {str(number): _percent(one) for number, one in enumerate(layers)}
    columns = list(zip(*rows.values(), strict=True))
    rows |= {"least": [min(c) for c in columns], "most": [max(c) for c in columns], "model": _percent(model)}
    ages = "".join(f"{back:7}" for back in range(1, WINDOW + 1))
    lines = [
        "% of the      active  80 % of the  newly active, for none of the",
        "neurons        for a  activations  last ... tokens                      active",
        f"of a layer     token     are from{ages}   again",
    ]
    for name, (active, hot, *new, again) in rows.items():
        shares = "".join(f"{share:7.2f}" for share in new)
        lines.append(f"{name:<10}{active:10.2f}{hot:13.1f}{shares}{again:8.1f}")
    return "\n".join(lines)


def _percent(figures: Figures) -> list[float]:
    return [100 * s for s in (figures.active, figures.hot, *figures.new, figures.again)]

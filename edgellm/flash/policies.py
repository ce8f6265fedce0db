"""How neurons come and go, and how many of them there is room for."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = 0  # tokens of a window: as many as there is room for


@dataclass(frozen=True)
class Rows:
    """Slots of each layer that there is memory for. own: always; lent: while tokens come one by one, in
    memory that prompts need."""

    own: int
    lent: int = 0

    @property
    def all(self) -> int:
        return self.own + self.lent


@dataclass(frozen=True)
class Policy:
    """How neurons come and go.

    nothing_stays: every weight is read for every token, neuron or not. everything: all neurons are read that
    are not in memory, needed or not. fixed: the first ones stay in memory, and nothing else does. apart: up
    and down are read by a request each. merge: near neighbours are read together. window: tokens that a
    neuron stays after it fired (window.py), or AUTO; None: the ones that fire most stay (favourites.py).
    """

    nothing_stays: bool = False
    everything: bool = False
    fixed: bool = False
    apart: bool = False
    merge: bool = True
    window: int | None = None


# The rungs of the ladder, as in table 2 of the paper.
POLICIES = {
    "naive": Policy(nothing_stays=True, everything=True, fixed=True),
    "hybrid": Policy(everything=True, fixed=True),
    "active": Policy(fixed=True, apart=True, merge=False),
    "window": Policy(apart=True, merge=False),
    "bundle": Policy(merge=False),
    "merged": Policy(),
}

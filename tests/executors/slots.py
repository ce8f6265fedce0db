"""How many slots of neurons stay in memory, whatever there is room for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgellm.executors.native.neurons import SparseFfn
from edgellm.flash.neurons import Neurons
from edgellm.flash.policies import Rows
from edgellm.kernels.team import Team


def keep_slots(monkeypatch: pytest.MonkeyPatch, slots: int, lent: int = 0) -> None:
    """From now on so many slots of each layer stay in memory, and `lent` more when there is no prompt."""
    open_neurons = SparseFfn.open

    def opened(self: SparseFfn, team: Team, kernel: int, _: Rows, back: Callable[[], None]) -> Neurons:
        return open_neurons(self, team, kernel, Rows(min(slots, self.layout.slots), lent), back)

    monkeypatch.setattr(SparseFfn, "open", opened)

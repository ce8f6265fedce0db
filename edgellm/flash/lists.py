"""What Python and the kernels tell each other about neurons: lists of them, and of what has to be read."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.layout import NeuronFire
from edgellm.kernels.memory import address, aligned

PARTS = 3


class Lists:
    """Memory for one layer at a time.

    here, arriving, all, gate_here, gate_arriving: int64, a count, then pairs of a neuron's number and its
    address. needed, missing, hopeful: slots; offsets, lengths, places: reads; counts: of all these.
    See layout.NeuronFire. fire: the argument records of kernels/neuron_fire.py, (layers, PARTS, fields): the
    neurons of a layer are looked at in one part or in three.
    """

    def __init__(self, layers: int, neurons: int):
        self.neurons = neurons

        def int64(count: int) -> np.ndarray:
            return aligned(count, np.int64)

        pairs = 1 + 2 * neurons
        self.all, self.here, self.arriving = int64(pairs), int64(pairs), int64(pairs)
        self.gate_here, self.gate_arriving = int64(pairs), int64(pairs)
        self.needed, self.missing, self.hopeful = int64(neurons), int64(neurons), int64(neurons)
        self.counts = int64(6)
        self.offsets, self.lengths, self.places = int64(neurons), int64(neurons), int64(neurons)
        self._mask = aligned(neurons, np.uint8)
        self.fire = int64(layers * PARTS * len(NeuronFire)).reshape(layers, PARTS, -1)
        self._floats = self.fire.view(np.float64)
        for name in (
            "ALL", "HERE", "ARRIVING", "GATE_HERE", "GATE_ARRIVING", "NEEDED", "MISSING", "HOPEFUL",
            "OFFSETS", "LENGTHS", "PLACES", "COUNTS",
        ):  # fmt: skip
            self.fire[..., getattr(NeuronFire, name)] = address(getattr(self, name.lower()))
        self.fire[..., NeuronFire.MASK] = address(self._mask)
        self.fire[:, 1:, NeuronFire.APPEND] = 1

    def set(self, layer: int, part: int | slice = slice(None), **values: int | float) -> None:
        """Fields of a layer's records, of all of them or of one."""
        for name, value in values.items():
            number = np.float64(value).view(np.int64) if isinstance(value, float) else value
            self.fire[layer, part, getattr(NeuronFire, name)] = number

    def scores(self, layer: int, step: float, bar: float) -> None:
        """set() of STEP and BAR."""
        self._floats[layer, :, NeuronFire.STEP], self._floats[layer, :, NeuronFire.BAR] = step, bar

    @staticmethod
    def nbytes(neurons: int) -> int:
        return neurons * (5 * 16 + 6 * 8 + 1)


def tell(memory: np.ndarray, neurons: np.ndarray, addresses: np.ndarray) -> None:
    """Make a list of neurons and their addresses."""
    count = len(neurons)
    memory[0] = count
    memory[1 : 1 + 2 * count : 2] = neurons
    memory[2 : 2 + 2 * count : 2] = addresses

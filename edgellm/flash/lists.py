"""What Python and the kernels tell each other about neurons: lists of them, and of what has to be read."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.layout import (
    BATCHES,
    COUNTERS,
    Counts,
    NeuronAhead,
    NeuronArrive,
    NeuronCheck,
    NeuronFire,
    NeuronKeep,
    NeuronQueue,
    Totals,
)
from edgellm.kernels.memory import address, aligned

PARTS = 3
NOBODY = -1  # layer that is read ahead, or whose slots are wrong


class Lists:
    """Memory for one layer at a time, and the argument records of the kernels for all layers.

    here, arriving, all, gate_here, gate_arriving: int64, a count, then pairs of a neuron's number and its
    address; fresh, hopeful: the same of slots. needed, missing: slots; counts: how many, see layout.Counts;
    reads: int64 (BATCHES, 3, neurons), offsets, lengths and places. coming: int64 (2, slots), where the slots
    of even and odd layers are read ahead to; ahead: which these are; held: of which layers. See
    layout.NeuronFire.
    fire: records of kernels/neuron_fire.py, (layers, PARTS, fields): the neurons of a layer are looked at in
    one part or in three. arrive, check, keep, ahead_of: of kernels/neuron_*.py, (layers, fields).
    """

    def __init__(self, layers: int, neurons: int):
        self.neurons = neurons

        def int64(*shape: int) -> np.ndarray:
            return aligned(int(np.prod(shape)), np.int64).reshape(shape)

        pairs = 1 + 2 * neurons
        self.all, self.here, self.arriving = int64(pairs), int64(pairs), int64(pairs)
        self.gate_here, self.gate_arriving = int64(pairs), int64(pairs)
        self.fresh, self.hopeful = int64(pairs), int64(pairs)
        self.needed, self.missing = int64(neurons), int64(neurons)
        self.counts, self.totals = int64(len(Counts)), int64(len(Totals))
        self.reads, self.pending = int64(BATCHES, 3, neurons), int64(BATCHES)
        self.failed = int64(1 + BATCHES * neurons)
        self.coming, self.ahead = int64(2, neurons), int64(2, 1 + neurons)
        self.held, self.wrong, self.stops = int64(2), int64(2), int64(2)
        self.next = int64(COUNTERS, 8)
        self._mask = aligned(neurons, np.uint8)
        self._batches = np.array([[address(part) for part in kind] for kind in self.reads])
        self.queue = int64(len(NeuronQueue))
        self.set(
            NeuronQueue, self.queue, READS=address(self._batches), PENDING=address(self.pending),
            FAILED=address(self.failed),
        )  # fmt: skip
        self.fire = int64(layers, PARTS, len(NeuronFire))
        self.ahead_of = int64(layers, len(NeuronAhead))
        self.arrive = int64(layers, len(NeuronArrive))
        self.check = int64(layers, len(NeuronCheck))
        self.keep = int64(layers, len(NeuronKeep))
        self._connect(layers)
        self.forget()

    def _connect(self, layers: int) -> None:
        """Fill in the records' addresses of what is here."""
        shared = {"TOTALS": address(self.totals), "QUEUE": address(self.queue)}
        names = (
            "ALL", "HERE", "ARRIVING", "GATE_HERE", "GATE_ARRIVING", "NEEDED", "MISSING", "HOPEFUL", "FRESH",
            "COUNTS", "NEXT",
        )  # fmt: skip
        lists = {name: address(getattr(self, name.lower())) for name in names}
        self.set(NeuronFire, self.fire, MASK=address(self._mask), **lists, **shared)
        self.set(NeuronFire, self.fire[:, 1:], APPEND=1)
        self.set(NeuronArrive, self.arrive, COUNTS=address(self.counts), STOP=address(self.stops), **shared)
        self.set(
            NeuronCheck, self.check, FRESH=address(self.fresh), WRONG=address(self.wrong),
            STOP=address(self.stops[1:]),
        )  # fmt: skip
        self.set(
            NeuronKeep, self.keep, HOPEFUL=address(self.hopeful), MASK=address(self._mask),
            NEURONS=self.neurons, TOTALS=shared["TOTALS"],
        )  # fmt: skip
        self.set(NeuronAhead, self.ahead_of, **shared)
        for layer in range(layers):
            held, coming = address(self.held[layer % 2 :]), address(self.coming[layer % 2])
            self.set(NeuronFire, self.fire[layer], LAYER=layer, HELD=held, COMING=coming)
            self.set(NeuronCheck, self.check[layer], LAYER=layer)
            self.set(NeuronArrive, self.arrive[layer], AHEAD=1 + layer % 2)
            self.set(
                NeuronAhead, self.ahead_of[layer], LAYER=layer, HELD=held, COMING=coming, KIND=1 + layer % 2,
                SLOTS=address(self.ahead[layer % 2]),
            )  # fmt: skip

    @staticmethod
    def set(fields: tuple, records: np.ndarray, **values: int | float) -> None:
        """Fields of records, (..., fields)."""
        for name, value in values.items():
            number = np.float64(value).view(np.int64) if isinstance(value, float) else value
            records[..., getattr(fields, name)] = number

    def scores(self, step: float, bars: np.ndarray) -> None:
        """Tell the kernels what a token adds to scores, and what they must exceed in each layer."""
        floats = self.fire.view(np.float64)
        floats[..., NeuronFire.STEP], floats[..., NeuronFire.BAR] = step, bars[:, None]

    def forget(self) -> None:
        """Nothing is being read, and nothing went wrong."""
        self.pending[:] = self.failed[0] = self.stops[:] = self.coming[:] = self.ahead[:, 0] = 0
        self.held[:] = self.wrong[:] = NOBODY

    @staticmethod
    def nbytes(neurons: int) -> int:
        return neurons * (7 * 16 + 2 * 8 + BATCHES * 4 * 8 + 4 * 8 + 1)


def tell(memory: np.ndarray, numbers: np.ndarray, addresses: np.ndarray) -> None:
    """Make a list of neurons, or slots, and their addresses."""
    count = len(numbers)
    memory[0] = count
    memory[1 : 1 + 2 * count : 2] = numbers
    memory[2 : 2 + 2 * count : 2] = addresses

"""FFNs of which only the neurons that fire are computed, wherever these are in memory.

A kernel finds out who fires and lists them (flash/lists.py), and what is not in memory is read. With an
io_uring kernels do that by themselves; else a step stops in front of some instructions (a Cut), and Python
does. What follows computes from the lists.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.native.buffers import Buffer
from edgellm.flash.counters import NeuronStats
from edgellm.flash.lists import Lists
from edgellm.flash.neurons import GAP, Neurons
from edgellm.flash.plan import NeuronPlan, expected_misses, widest_window
from edgellm.flash.policies import AUTO, Policy, Rows
from edgellm.flash.probe import load
from edgellm.flash.reader import Reader
from edgellm.flash.uring import Ring, UringRefused
from edgellm.formats.slots import Role, section_of
from edgellm.kernels.memory import address
from edgellm.kernels.team import Team
from edgellm.program import ops

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.edge import Bundle

CHECK_KERNEL = "neuron_check"
_log = logging.getLogger("edgellm")
LEAST_TO_SPLIT = 2048  # neurons of a layer: smaller gates are done before a read has begun
FIRST_PART = 0.35  # of the neurons; docs/flash.md
GAP_DEPTH = 32  # reads in flight, about as many as a layer asks for at a time
RING_DEPTH = 1024  # reads in flight; more are waited for
PART_ROWS = 80  # a multiple of the rows of all tiles


@dataclass(frozen=True)
class Cut:
    """What happens before instruction number `at`. fire: the neurons that fire are asked for, where the
    kernel does not do that; arrive: they are waited for; watch: somebody is shown the rows of `buffer`,
    before the activation, and of `inputs`, the FFN's."""

    at: int
    kind: Literal["fire", "arrive", "watch"]
    layer: int
    buffer: Buffer | None = None
    inputs: Buffer | None = None


class SparseFfn:
    """How the FFNs of a bundle are computed."""

    def __init__(self, bundle: Bundle, predicted: bool, policy: Policy | None = None):
        assert bundle.layout is not None
        self.bundle, self.layout, self.policy = bundle, bundle.layout, policy or Policy()
        # Whether gates are in slots, and who fires is predicted.
        self.gates = bundle.mode == "sparse-predicted" and predicted
        self.lists = Lists(self.layout.layers, self.layout.neurons)
        self.neurons: Neurons | None = None
        self._ring = self._own_ring()
        self.parts: tuple[tuple[int, int], ...] = ((0, self.layout.neurons),)
        self.ahead: tuple[int, int] | None = None  # neurons of the next layer that are looked at

    @classmethod
    def of(cls, checkpoint: Checkpoint, policy: Policy | None = None) -> SparseFfn | None:
        """That of a checkpoint, if it is a bundle with neurons in slots."""
        bundle = checkpoint.bundle
        if bundle is None or bundle.layout is None:
            return None
        predicted = "blk.0.ffn_predictor_up.weight" in checkpoint.tensors
        if bundle.mode == "sparse-predicted" and not predicted:
            _log.warning(
                f"{bundle.path}: nobody has trained its predictor, so its gates stay in memory and tell who "
                "fires; train it with edgellm predictor train."
            )
        return cls(bundle, predicted, policy)

    def _own_ring(self) -> Ring | None:
        """An io_uring for the kernel to submit to, where there is one and the reads are those it makes."""
        policy = self.policy
        if policy.everything or policy.apart or policy.window is not None:
            return None
        try:
            ring = Ring(RING_DEPTH)
        except UringRefused:
            return None
        weakref.finalize(self, ring.close)  # where nobody comes to close it
        return ring

    @property
    def fire_kernel(self) -> str:
        """The kernel that finds out who fires."""
        return "neuron_fire" if self._ring is None else "neuron_fire/submits=1"

    @property
    def without_ring(self) -> bool:
        """Whether Python has to ask for the neurons that fire, and to wait for them."""
        return self._ring is None

    def close(self) -> None:
        """Close what was opened."""
        if self.neurons is not None:
            self.neurons.close()
        elif self._ring is not None:
            self._ring.close()

    def weights(self, op: ops.Ffn) -> tuple[list[ops.Weight], list[ops.Weight]]:
        """The matrices of an FFN that are not in slots, in the order of use, and its vectors."""
        vectors = [w for w in (op.up_bias, op.down_bias, op.sub_norm) if w is not None]
        if self.gates:
            down, up, bias = self.predictor(op)
            return [down, up], [bias, *vectors]
        return [op.up if op.gate is None else op.gate], vectors

    @staticmethod
    def predictor(op: ops.Ffn) -> tuple[ops.Weight, ops.Weight, ops.Weight]:
        """Of who will fire: up relu(down x) + bias is above 0."""
        name = f"blk.{op.layer}.ffn_predictor_"
        return ops.Weight(f"{name}down.weight"), ops.Weight(f"{name}up.weight"), ops.Weight(f"{name}up.bias")

    @property
    def may_read_ahead(self) -> bool:
        """Whether gates are in memory to guess from, and kernels can read."""
        return self._ring is not None and not self.gates and self.layout.neurons >= LEAST_TO_SPLIT

    def split(self, capacity: int) -> None:
        """Look at the neurons of a layer in parts, when `capacity` slots of each stay in memory, so that some
        are read while the gate of the others is computed: first the rarest, then those that are most often
        missing, which are also looked at a layer ahead."""
        layout = self.layout
        self.parts, self.ahead = ((0, layout.neurons),), None
        if self.may_read_ahead and capacity < layout.slots:
            step = math.lcm(PART_ROWS, layout.per_slot)
            low = capacity * layout.per_slot // step * step
            high = min(layout.neurons, low + int(FIRST_PART * layout.neurons) // step * step)
            parts = ((high, layout.neurons), (low, high), (0, low))
            self.parts = tuple(part for part in parts if part[0] < part[1])
            self.ahead = (low, high) if low < high else None

    def vector(self, role: Role) -> int:
        """Bytes from a neuron's address, as the lists have it, to one of its vectors."""
        return self.layout.offset(role) - self.layout.section_offset(section_of(role))

    def threshold(self, op: ops.Ffn) -> float:
        """Magnitudes of act(gate) up to this do not count as firing."""
        thresholds = self.bundle.thresholds
        assert op.layer is not None
        return op.threshold if thresholds is None else max(op.threshold, float(thresholds[op.layer]))

    def memory_bytes(self, capacity: int) -> int:
        """What the neurons take with `capacity` slots of each layer in memory."""
        return Neurons.memory_bytes(self.layout, capacity, self.gates, self.policy, self.may_read_ahead)

    def rows(self, nbytes: int, prompts: int) -> Rows:
        """The most slots of each layer that fit into `nbytes`, and into the `prompts` bytes that only steps
        of several tokens need."""
        own, layout = max(0, self._most(nbytes)), self.layout
        if not self.may_read_ahead or self.policy.fixed or own >= layout.slots:
            return Rows(own)
        each = layout.read_bytes(self.gates)
        spare = prompts + layout.layer_bytes  # with the staging area
        # A token that misses so much that it needs the staging area gets back what other layers were lent.
        lent = min(spare // (layout.layers * each), prompts // each + own, layout.slots - own)
        return Rows(own, lent)

    def _most(self, nbytes: int) -> int:
        """The most slots of each layer that fit into `nbytes`; below 0 if not even none does."""
        layout = self.layout
        if self.memory_bytes(layout.slots) <= nbytes:
            return layout.slots
        each = self.memory_bytes(1) - self.memory_bytes(0)
        return min(layout.slots - 1, (nbytes - self.memory_bytes(0)) // each)

    @property
    def stats(self) -> NeuronStats:
        """What was read since the bundle was opened."""
        return self.neurons.stats if self.neurons else NeuronStats()

    def slot_frequency(self) -> np.ndarray | None:
        """(layers, slots): share of tokens on which a slot is needed, if neurons fire independently; None
        where nobody has measured how often they do."""
        layout, frequency = self.layout, self.bundle.frequency
        if frequency is None:
            return None
        idle = np.ones((layout.layers, layout.slots * layout.per_slot))
        idle[:, : layout.neurons] -= frequency
        return np.asarray(1 - idle.reshape(layout.layers, layout.slots, layout.per_slot).prod(axis=2))

    def plan(self, rows: Rows) -> NeuronPlan:
        """What to expect of so many slots of each layer in memory."""
        layout, active, missing, window, capacity = self.layout, None, None, None, rows.all
        frequency = self.slot_frequency()
        if frequency is not None:
            window = widest_window(frequency, rows.own)
        if frequency is not None and not self.policy.everything:  # else reads are no slots
            active = float(frequency.sum())
            if self.policy.window is None:
                kept = np.sort(frequency, axis=1)[:, layout.slots - capacity :]
                missing = active - float(kept.sum())
            else:
                missing = sum(expected_misses(layer, capacity) for layer in frequency)
        return NeuronPlan(
            self.bundle.mode, layout.layers, layout.slots, capacity, layout.read_bytes(self.gates),
            self.memory_bytes(rows.own), layout.layers * rows.lent * layout.read_bytes(self.gates), active,
            missing, window,
        )  # fmt: skip

    def begin(self, many: bool) -> None:
        """Before a step, of several tokens or of one."""
        assert self.neurons is not None
        self.neurons.begin(many)

    def restart(self) -> None:
        """After a step that broke off."""
        if self.neurons is not None:
            self.neurons.restart()

    def open(self, team: Team, kernel: int, rows: Rows, give_back: Callable[[], None]) -> Neurons:
        """Open ffn.bin; nothing is read yet. kernel: the address of CHECK_KERNEL; give_back: as of
        Neurons."""
        frequency = self.slot_frequency()
        if self.policy.window == AUTO:
            if frequency is None:
                raise EdgeError(
                    f"{self.bundle.path}: nobody has measured how often its neurons fire, so no window "
                    "can be chosen; pack the model with --text, or give --window a number of tokens."
                )
            window = widest_window(frequency, rows.own)
            _log.info(f"A window of {window} tokens fits.")
            self.policy = replace(self.policy, window=window)
        reader = Reader(self.bundle.path / "ffn.bin")
        lists = self.lists
        device = load(self.bundle.path)  # if it was measured before
        self.neurons = Neurons(
            reader,
            self.layout,
            np.asarray(self.bundle.sums),
            lambda layer: team.run(kernel, address(lists.check[layer]), 0),
            rows,
            lists,
            self.gates,
            self.policy,
            frequency,
            GAP if device is None else device.fit(GAP_DEPTH).gap_bytes,
            self._ring,
            self.ahead is not None,
            give_back,
        )
        return self.neurons

    def meet(self, cut: Cut, rows: int) -> None:
        """Do what a cut asks for, in a step of `rows` rows."""
        assert self.neurons is not None
        if cut.kind == "arrive":
            self.neurons.arrive()
        else:
            self.neurons.fire(cut.layer, many=rows > 1)

    def mend(self) -> None:
        """A kernel has stopped the step."""
        assert self.neurons is not None
        self.neurons.mend()


Meet = Callable[[Cut, int], None]  # a cut, and how many rows the step has behind it
# Layer, inputs of its FFN (rows, hidden), and what they make of the gate, or of up where there is none,
# before the activation (rows, neurons); float32.
Watch = Callable[[int, np.ndarray, np.ndarray], None]

"""What a budget is spent on, and how fast that should be: told beforehand, and compared afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.flash.budget import Budget
from edgellm.flash.device import DeviceModel
from edgellm.flash.reader import LONGEST
from edgellm.flash.residency import Residency


@dataclass(frozen=True)
class Prediction:
    """Seconds of one decoded token: io, to read what is not in memory; memory, to read all weights from
    there; cpu, that reading takes away from computing; waits, to read neurons, which nothing overlaps."""

    io: float
    memory: float
    cpu: float
    waits: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Reading matrices and computing overlap; the processor time of reading does not."""
        return 1 / (self.waits + max(self.io, self.memory + self.cpu))


@dataclass(frozen=True)
class NeuronPlan:
    """Slots of neurons: `slots` in each of `layers` layers, `capacity` of them in memory. slot_bytes: of a
    read; memory_bytes: what they take; lent_bytes: and of what prompts need, while tokens come one by one.
    active, missing: slots that a token is expected to need, and to have to read; window: the widest one that
    fits, in tokens; None where that is not known."""

    mode: str
    layers: int
    slots: int
    capacity: int
    slot_bytes: int
    memory_bytes: int
    lent_bytes: int
    active: float | None
    missing: float | None
    window: int | None

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return self.layers * self.slots * self.slot_bytes


LONGEST_WINDOW = 1024  # tokens


def distinct(frequency: np.ndarray, tokens: float) -> float:
    """Slots that `tokens` tokens are expected to need together, of a layer with frequency (slots,), if
    neurons fire independently."""
    return float((1 - (1 - np.clip(frequency.astype(np.float64), 0, 1)) ** tokens).sum())


def widest_window(frequency: np.ndarray, capacity: int) -> int:
    """The most tokens, at least one, whose slots fit into `capacity` rows in every layer; LONGEST_WINDOW at
    most. frequency: (layers, slots). Real tokens repeat more than independent ones, so it is on the safe
    side."""
    low, high = 1, LONGEST_WINDOW
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(distinct(layer, middle) <= capacity for layer in frequency)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def expected_misses(frequency: np.ndarray, capacity: int) -> float:
    """Slots of a layer that a token needs and that are not among the `capacity` used last.

    frequency: (slots,) of each. Che's approximation for independent references: what was used in the last T
    tokens is there, with T such that they fill the memory. Real tokens repeat more: it is an upper bound.
    """
    p = np.clip(frequency.astype(np.float64), 0, 1)
    if capacity >= np.count_nonzero(p):
        return 0.0
    low, high = 0.0, 1.0
    while distinct(p, high) < capacity and high < 1e9:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if distinct(p, middle) < capacity else (low, middle)
    return float((p * (1 - p) ** low).sum())


@dataclass(frozen=True)
class Plan:
    """What the memory of a process goes to. neurons: for a bundle that has them in slots."""

    budget: Budget
    residency: Residency
    neurons: NeuronPlan | None = None

    @property
    def mode(self) -> str:
        """That of the bundle; else "resident", or "stream" where weights are read for every token."""
        if self.neurons is not None:
            return self.neurons.mode
        return "stream" if self.residency.streamed_bytes else "resident"

    def predict(self, device: DeviceModel, stream_bandwidth: float, threads: int) -> Prediction | None:
        """From the measured device, and the bytes per second that `threads` threads read from memory. None
        for a bundle of which nobody has measured who fires."""
        held = self.residency
        streamed, memory = held.streamed_bytes, held.pinned_bytes + held.streamed_bytes
        waits = 0.0
        if self.neurons is not None:
            one = self.neurons
            if one.active is None or one.missing is None:
                return None
            memory += int(one.active * one.slot_bytes)
            if one.missing:
                together = min(max(1.0, one.missing / one.layers), device.depths()[-1])
                each = max(one.slot_bytes, device.sizes()[0])  # shorter ones cost as much as the shortest
                waits = device.seconds(one.missing, each, together)
        seconds = memory / stream_bandwidth
        if not streamed:
            return Prediction(0.0, seconds, 0.0, waits)
        longest = min(LONGEST, held.slot_bytes)
        depth = min(max(1, (held.slots - 1) * held.slot_bytes // longest), device.depths()[-1])
        requests = streamed / longest
        cpu = device.cpu_seconds(requests, longest, depth) / threads
        return Prediction(device.seconds(requests, longest, depth), seconds, cpu, waits)

    def report(self, prediction: Prediction | None) -> dict[str, Any]:
        """Plain data for JSON."""
        budget, held, neurons = self.budget, self.residency, self.neurons
        residency = {
            "process_bytes": budget.process + budget.margin,
            "activations_bytes": budget.activations + budget.rows,
            "kv_bytes": budget.kv,
            "pinned_bytes": held.pinned_bytes,
            "ring_bytes": held.ring_bytes,
            "streamed_bytes": held.streamed_bytes,
        }
        found: dict[str, Any] = {
            "mode": self.mode,
            "dram_bytes": budget.dram,
            "residency": residency,
            "predicted_tokens_per_second": prediction and prediction.tokens_per_second,
            "predicted_ms": prediction and {
                "io": 1e3 * (prediction.io + prediction.waits), "memory": 1e3 * prediction.memory,
                "cpu": 1e3 * prediction.cpu,
            },
        }  # fmt: skip
        if neurons is not None:
            residency |= {
                "neurons_bytes": neurons.memory_bytes,
                "neurons_lent_bytes": neurons.lent_bytes,
                "neurons_in_slots_bytes": neurons.nbytes,
            }
            found["neurons"] = {
                "slots_in_memory": neurons.capacity, "slots": neurons.slots, "layers": neurons.layers,
                "slot_bytes": neurons.slot_bytes, "expected_active": neurons.active,
                "expected_misses": neurons.missing, "widest_window": neurons.window,
            }  # fmt: skip
        return found

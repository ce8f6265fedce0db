"""What a budget is spent on, and how fast that should be: told beforehand, and compared afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.flash.budget import Budget
from edgellm.flash.device import DeviceModel
from edgellm.flash.reader import LONGEST
from edgellm.flash.residency import Residency


@dataclass(frozen=True)
class Prediction:
    """Seconds of one decoded token: io, to read what is not in memory; memory, to read all weights from
    there; cpu, that reading takes away from computing."""

    io: float
    memory: float
    cpu: float

    @property
    def tokens_per_second(self) -> float:
        """Reading and computing overlap; the processor time of reading does not."""
        return 1 / max(self.io, self.memory + self.cpu)


@dataclass(frozen=True)
class Plan:
    """What the memory of a process goes to."""

    budget: Budget
    residency: Residency

    @property
    def mode(self) -> str:
        """ "resident", or "stream" where weights are read for every token."""
        return "stream" if self.residency.streamed_bytes else "resident"

    def predict(self, device: DeviceModel, stream_bandwidth: float, threads: int) -> Prediction:
        """From the measured device, and the bytes per second that `threads` threads read from memory."""
        held = self.residency
        streamed, memory = held.streamed_bytes, (held.pinned_bytes + held.streamed_bytes) / stream_bandwidth
        if not streamed:
            return Prediction(0.0, memory, 0.0)
        longest = min(LONGEST, held.slot_bytes)
        depth = min(max(1, (held.slots - 1) * held.slot_bytes // longest), device.depths()[-1])
        requests = streamed / longest
        cpu = device.cpu_seconds(requests, longest, depth) / threads
        return Prediction(device.seconds(requests, longest, depth), memory, cpu)

    def report(self, prediction: Prediction | None) -> dict[str, Any]:
        """Plain data for JSON."""
        budget, held = self.budget, self.residency
        return {
            "mode": self.mode,
            "dram_bytes": budget.dram,
            "residency": {
                "process_bytes": budget.process + budget.margin,
                "activations_bytes": budget.activations + budget.rows,
                "kv_bytes": budget.kv,
                "pinned_bytes": held.pinned_bytes,
                "ring_bytes": held.ring_bytes,
                "streamed_bytes": held.streamed_bytes,
            },
            "predicted_tokens_per_second": prediction and prediction.tokens_per_second,
            "predicted_ms": prediction and {
                "io": 1e3 * prediction.io, "memory": 1e3 * prediction.memory, "cpu": 1e3 * prediction.cpu,
            },
        }  # fmt: skip

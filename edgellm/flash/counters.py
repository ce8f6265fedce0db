"""What came from flash, and what a token waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Counters:
    """Bytes and requests that were read, seconds that computation waited for them and that it took itself;
    slots of neurons that were needed, and those of them that were missing."""

    bytes: int
    reads: int
    wait_seconds: float
    compute_seconds: float
    needed: int = 0
    missed: int = 0

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            self.bytes - before.bytes, self.reads - before.reads,
            self.wait_seconds - before.wait_seconds, self.compute_seconds - before.compute_seconds,
            self.needed - before.needed, self.missed - before.missed,
        )  # fmt: skip


@dataclass
class TokenLog:
    """One entry for each decoded token: its seconds, and what happened meanwhile."""

    seconds: list[float]
    counters: list[Counters]
    likeliest: list[int]  # token after each

    def report(self, needed: int) -> dict[str, Any]:
        """ "io" and "latency_ms" of `edgellm bench --dram`. needed: bytes of weights that a token needs; the
        hit rate is the share of them that was in memory, or of the neurons that fired."""
        latency = 1e3 * np.array(self.seconds)
        missed = np.array([c.missed / c.needed if c.needed else c.bytes / needed for c in self.counters])
        io = 1e3 * float(np.mean([c.wait_seconds for c in self.counters]))
        compute = 1e3 * float(np.mean([c.compute_seconds for c in self.counters]))
        mean = float(latency.mean())
        return {
            "io": {
                "bytes_per_token": float(np.mean([c.bytes for c in self.counters])),
                "requests_per_token": float(np.mean([c.reads for c in self.counters])),
                "hit_rate": {
                    "mean": float(1 - missed.mean()),
                    "p99": float(1 - np.percentile(missed, 99)),
                },
            },
            "latency_ms": {
                "mean": mean,
                **{f"p{p}": float(np.percentile(latency, p)) for p in (50, 90, 99)},
                "io": io, "memory": mean - io - compute, "compute": compute,
            },
        }  # fmt: skip


@dataclass
class NeuronStats:
    """bytes and requests that were read; neurons that were needed, and those of them that were not in memory;
    seconds that computation waited for reads, and that the bookkeeping took; and what of both was inside of
    kernels."""

    bytes: int = 0
    reads: int = 0
    needed: int = 0
    missed: int = 0
    wait_seconds: float = 0.0
    memory_seconds: float = 0.0
    kernel_seconds: float = 0.0

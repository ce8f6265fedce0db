"""A budget for the whole process: what is left of it for weights."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import EdgeError

MARGIN = 24 << 20  # bytes for what grows later and is not counted: text, logits, the interpreter's own


@dataclass(frozen=True)
class Budget:
    """Bytes. process: what it holds before weights are loaded; the rest: what it will hold besides them."""

    dram: int
    process: int
    activations: int
    kv: int
    rows: int = 0  # of embeddings that were read
    margin: int = MARGIN

    @property
    def others(self) -> int:
        return self.process + self.activations + self.kv + self.rows + self.margin

    @property
    def weights(self) -> int:
        """What is left for them; may be negative."""
        return self.dram - self.others

    def refusal(self, name: str, least: int, context: int) -> EdgeError:
        """When weights need at least `least` bytes, which is more than is left."""
        parts = {
            "the process": self.process + self.margin, "activations": self.activations + self.rows,
            f"the KV cache of {context} tokens": self.kv, "weights on their way": least,
        }  # fmt: skip
        listed = ", ".join(f"{nbytes / 2**20:.0f} for {what}" for what, nbytes in parts.items())
        return EdgeError(
            f"{name} does not run in {self.dram / 2**20:.0f} MiB: it needs at least "
            f"{-(-(self.others + least) // 2**20)} MiB ({listed}); raise --dram or lower --ctx."
        )


def resident_bytes() -> int:
    """Memory that this process holds now, shared pages included."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # no portable way to the present figure
    return peak if sys.platform == "darwin" else peak * 1024

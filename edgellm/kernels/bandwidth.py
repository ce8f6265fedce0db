"""Measures how fast this machine's memory can be read: the bound for decode."""

from __future__ import annotations

import time

import numpy as np

from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Stream, record
from edgellm.kernels.memory import address, aligned, reserve
from edgellm.kernels.simd.level import host_target
from edgellm.kernels.team import Team

BUFFER_BYTES = 256 << 20  # beyond every cache of the machines this was written on
PASSES = 7


def measure(threads: int, nbytes: int = BUFFER_BYTES, area: np.ndarray | None = None) -> float:
    """Bytes per second that `threads` threads read together from `nbytes` of memory; the median pass.

    area: memory, uint8, that holds something already, to be read instead of new memory.
    """
    target = host_target()
    kernel = load_kernels(["stream"], target)["stream"]
    if area is None:
        buffer = reserve(nbytes, huge_pages=True, what="the bandwidth measurement")
        buffer[:] = 1  # a page that was never written is not memory yet
    else:
        nbytes = area.nbytes // (256 * threads) * (256 * threads)
        buffer = area
    sums = aligned(16 * threads, np.int32)
    args = record(Stream, ADDRESS=address(buffer), NBYTES=nbytes, OUT=address(sums))
    team = Team(threads, target)
    try:
        seconds = []
        for _ in range(PASSES):
            start = time.perf_counter()
            team.run(kernel, address(args), 0)
            seconds.append(time.perf_counter() - start)
    finally:
        team.close()
    return nbytes / float(np.median(seconds))

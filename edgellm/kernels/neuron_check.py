"""Checksums of pieces of memory: formats/slots.py, checksums()."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import NeuronCheck as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at, u64_at


def build(target: Target) -> Callable[..., None]:
    """The kernel neuron_check. Threads share out the pieces."""

    def neuron_check(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        addresses, sums, count = i64_at(a[Arg.ADDRESSES]), u64_at(a[Arg.SUMS]), a[Arg.COUNT]
        for i in range(count * thread // threads, count * (thread + 1) // threads):
            words = u64_at(addresses[i])
            total = np.uint64(0)
            for w in range(a[Arg.WORDS]):
                total += words[w] * np.uint64(2 * w + 1)
            sums[i] = total

    return neuron_check

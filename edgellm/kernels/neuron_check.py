"""Slots that were read for the first time are what was packed: formats/slots.py, checksums()."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import NeuronCheck as Arg
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import helper, i64_at, u8_at, u64_at


@helper
def _sum(at, nbytes):  # type: ignore[no-untyped-def]
    words, total = u64_at(at), np.uint64(0)
    for w in range(nbytes // 8):
        total += words[w] * np.uint64(2 * w + 1)
    return total


def build(target: Target) -> Callable[..., None]:
    """The kernel neuron_check. Threads share out the slots. The step stops if one is wrong; a barrier is
    behind it."""

    def neuron_check(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        fresh, sums, checked = i64_at(a[Arg.FRESH]), u64_at(a[Arg.SUMS]), u8_at(a[Arg.CHECKED])
        count = fresh[0]
        for i in range(count * thread // threads, count * (thread + 1) // threads):
            slot, at = fresh[1 + 2 * i], fresh[2 + 2 * i]
            same = _sum(at, a[Arg.BYTES]) == sums[2 * slot]
            if a[Arg.MORE_BYTES] > 0:
                same = same and _sum(at + a[Arg.MORE], a[Arg.MORE_BYTES]) == sums[2 * slot + 1]
            if same:
                checked[slot] = np.uint8(1)
            else:
                wrong = i64_at(a[Arg.WRONG])
                wrong[0], wrong[1] = a[Arg.LAYER], slot
                i64_at(a[Arg.STOP])[0] = 1

    return neuron_check

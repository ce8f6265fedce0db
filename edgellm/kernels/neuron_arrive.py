"""Where a step waits for a layer's neurons from flash. The step stops if one of the reads went wrong."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.clock import make_clock
from edgellm.kernels.layout import Counts, NeuronQueue, Totals
from edgellm.kernels.layout import NeuronArrive as Arg
from edgellm.kernels.neuron_queue import wait
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at


def build(target: Target) -> Callable[..., None]:
    """The kernel neuron_arrive. The first thread waits; a barrier is behind it."""
    clock = make_clock(target)

    def neuron_arrive(args: int, state: int, thread: int, threads: int) -> None:
        if thread != 0:
            return
        a = i64_at(args)
        queue, stop = a[Arg.QUEUE], i64_at(a[Arg.STOP])
        pending, kind = i64_at(i64_at(queue)[NeuronQueue.PENDING]), a[Arg.AHEAD]
        whole = True
        if pending[0] + pending[kind] > 0:
            begin = clock()
            whole = wait(queue, 0) and wait(queue, kind)
            i64_at(a[Arg.TOTALS])[Totals.WAITED] += clock() - begin
        counts = i64_at(a[Arg.COUNTS])
        started = counts[Counts.SUBMITTED] == counts[Counts.READS]
        if not whole or not started or i64_at(i64_at(queue)[NeuronQueue.FAILED])[0] > 0:
            stop[0] = 1

    return neuron_arrive

"""Reads ahead: neurons of the next layer that fire for this layer's input are likely to for its own.

The residual stream changes little from layer to layer. Slots that turn out not to be needed have cost a read;
those that are found out later are read then, so results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import NeuronAhead as Arg
from edgellm.kernels.layout import NeuronQueue, Totals
from edgellm.kernels.neuron_queue import submit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, i64_at


def build(target: Target) -> Callable[..., None]:
    """The kernel neuron_ahead. The first thread does it, while the others go on."""

    def neuron_ahead(args: int, state: int, thread: int, threads: int) -> None:
        if thread != 0:
            return
        a, act = i64_at(args), f32_at(i64_at(args)[Arg.ACT])
        threshold = np.float32(f64_at(args)[Arg.THRESHOLD])
        reads = i64_at(i64_at(a[Arg.QUEUE])[NeuronQueue.READS])
        kind, totals = a[Arg.KIND], i64_at(a[Arg.TOTALS])
        offsets, lengths = i64_at(reads[3 * kind]), i64_at(reads[3 * kind + 1])
        places = i64_at(reads[3 * kind + 2])
        coming, row_of, slots = i64_at(a[Arg.COMING]), i64_at(a[Arg.ROW_OF]), i64_at(a[Arg.SLOTS])
        for i in range(slots[0]):  # of the layer before the last
            coming[slots[1 + i]] = 0
        per_slot, stride, row_bytes = a[Arg.PER_SLOT], a[Arg.STRIDE], a[Arg.ROW_BYTES]
        count, used, found, slot = 0, 0, 0, -1
        for i in range(a[Arg.FIRST], a[Arg.LAST]):
            if abs(act[i]) <= threshold or i // per_slot == slot:
                continue
            slot = i // per_slot
            if row_of[slot] >= 0:
                continue
            at = a[Arg.LAYER_OFFSET] + slot * stride
            more, joins = row_bytes, False
            if count > 0:
                end = offsets[count - 1] + lengths[count - 1]
                joins = at - end <= a[Arg.GAP]
                more = at + row_bytes - end if joins else row_bytes
            if used + more > a[Arg.AREA_BYTES]:
                break
            if joins:
                lengths[count - 1] += more
            else:
                offsets[count], lengths[count], places[count] = at, row_bytes, a[Arg.AREA] + used
                count += 1
            used += more
            coming[slot] = a[Arg.AREA] + used - row_bytes
            slots[1 + found] = slot
            found += 1
        slots[0] = found
        i64_at(a[Arg.HELD])[0] = a[Arg.LAYER]
        totals[Totals.BYTES] += used
        totals[Totals.READS] += count
        submit(a[Arg.QUEUE], kind, 0, count)

    return neuron_ahead

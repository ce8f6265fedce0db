"""Of the slots that were read for a token, some come to stay, in place of less popular ones.

See flash/favourites.py. It changes which slots are in memory, and no result.
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.clock import make_clock
from edgellm.kernels.layout import NeuronKeep as Arg
from edgellm.kernels.layout import Totals
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f64_at, helper, i64_at, u8_at


@helper
def _busy(mask, slot, per_slot, neurons):  # type: ignore[no-untyped-def]
    """Whether one of a slot's neurons fires for the token."""
    found = False
    for i in range(slot * per_slot, min((slot + 1) * per_slot, neurons)):
        found = found or mask[i] != 0
    return found


@helper
def place_of(row, arena, own, lent, row_bytes):  # type: ignore[no-untyped-def]
    """Address of a row of a layer's: the first `own` are in its arena, the others are lent to it."""
    return arena + row * row_bytes if row < own else lent + (row - own) * row_bytes


def build(target: Target) -> Callable[..., None]:
    """The kernel neuron_keep. The first thread does it; nobody reads the rows that are written."""
    clock = make_clock(target)

    def neuron_keep(args: int, state: int, thread: int, threads: int) -> None:
        hopeful = i64_at(i64_at(args)[Arg.HOPEFUL])
        if thread != 0 or hopeful[0] == 0:
            return
        begin = clock()
        a = i64_at(args)
        weakest, scores = i64_at(a[Arg.WEAKEST]), f64_at(a[Arg.SCORES])
        row_of, slot_in, used = i64_at(a[Arg.ROW_OF]), i64_at(a[Arg.POINTER]), i64_at(a[Arg.NUM_USED])
        mask, per_slot, row_bytes = u8_at(a[Arg.MASK]), a[Arg.PER_SLOT], a[Arg.ROW_BYTES]
        times = f64_at(args)[Arg.HYSTERESIS]
        for i in range(hopeful[0]):
            slot, source = hopeful[1 + 2 * i], hopeful[2 + 2 * i]
            if used[0] < a[Arg.CAPACITY]:
                row = used[0]
                used[0] += 1
            else:
                # weakest: how many rows are listed, how many of them are done with, the rows
                while weakest[1] < weakest[0] and _busy(
                    mask, slot_in[weakest[2 + weakest[1]]], per_slot, a[Arg.NEURONS]
                ):
                    weakest[1] += 1
                if weakest[1] == weakest[0]:
                    break
                row = weakest[2 + weakest[1]]
                if scores[slot] <= scores[slot_in[row]] * times:
                    continue
                weakest[1] += 1
                row_of[slot_in[row]] = -1
            to = i64_at(place_of(row, a[Arg.ARENA], a[Arg.OWN], a[Arg.LENT], row_bytes))
            words = i64_at(source)
            for w in range(row_bytes // 8):
                to[w] = words[w]
            slot_in[row], row_of[slot] = slot, row
        i64_at(a[Arg.TOTALS])[Totals.BOOKKEEPING] += clock() - begin

    return neuron_keep

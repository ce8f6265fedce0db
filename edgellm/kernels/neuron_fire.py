"""Who fires, where their weights are, and what has to be read: the bookkeeping behind a gate.

Neurons FIRST to LAST whose activation is above the threshold, for any of the tokens, are added to the lists;
slots of theirs that are not in memory are added to the reads, near neighbours to the same one. One thread
does it, in the time of some memory accesses for each neuron, and starts the reads while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.layout import COUNTERS, NO_READ, Counts, NeuronQueue, State, Totals
from edgellm.kernels.layout import NeuronFire as Arg
from edgellm.kernels.neuron_keep import place_of
from edgellm.kernels.neuron_queue import submit
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, helper, i64_at, u8_at


@helper
def _add_pair(pairs, first, second):  # type: ignore[no-untyped-def]
    """Add two numbers to a list that begins with its count."""
    count = pairs[0]
    pairs[1 + 2 * count], pairs[2 + 2 * count] = first, second
    pairs[0] = count + 1


def build(target: Target, submits: int = 0) -> Callable[..., None]:
    """The kernel neuron_fire. submits: it starts the reads itself."""

    def neuron_fire(args: int, state: int, thread: int, threads: int) -> None:
        if thread != 0:
            return
        a, s = i64_at(args), i64_at(state)
        tokens, first, last = s[State.TOKENS], a[Arg.FIRST], a[Arg.LAST]
        mask = u8_at(a[Arg.MASK])
        threshold = np.float32(f64_at(args)[Arg.THRESHOLD])
        for i in range(first, last):
            mask[i] = np.uint8(0)
        for t in range(tokens):
            act = f32_at(a[Arg.ACT] + t * a[Arg.ACT_STRIDE])
            for i in range(first, last):
                quiet = abs(act[i]) <= threshold  # of what is not a number too nobody may lose sight
                mask[i] = mask[i] | np.uint8(not quiet)
                act[i] = np.float32(0) if quiet else act[i]
        all_, here, arriving = i64_at(a[Arg.ALL]), i64_at(a[Arg.HERE]), i64_at(a[Arg.ARRIVING])
        gate_here, gate_arriving = i64_at(a[Arg.GATE_HERE]), i64_at(a[Arg.GATE_ARRIVING])
        row_of, scores = i64_at(a[Arg.ROW_OF]), f64_at(a[Arg.SCORES])
        needed, missing, counts = i64_at(a[Arg.NEEDED]), i64_at(a[Arg.MISSING]), i64_at(a[Arg.COUNTS])
        batches = i64_at(i64_at(a[Arg.QUEUE])[NeuronQueue.READS])
        offsets, lengths, places = i64_at(batches[0]), i64_at(batches[1]), i64_at(batches[2])
        per_slot, row_bytes, stride = a[Arg.PER_SLOT], a[Arg.ROW_BYTES], a[Arg.STRIDE]
        begin, gap = a[Arg.LAYER_OFFSET], a[Arg.GAP]
        landing, room = a[Arg.LANDING], a[Arg.LANDING_BYTES]
        step, bar, gates = f64_at(args)[Arg.STEP], f64_at(args)[Arg.BAR], a[Arg.GATE_OFFSET] != 0
        hopeful, fresh, checked = i64_at(a[Arg.HOPEFUL]), i64_at(a[Arg.FRESH]), u8_at(a[Arg.CHECKED])
        coming, held = i64_at(a[Arg.COMING]), i64_at(a[Arg.HELD])[0] == a[Arg.LAYER]
        if a[Arg.APPEND] == 0:
            all_[0] = here[0] = arriving[0] = hopeful[0] = fresh[0] = 0
            for i in range(Counts.UNPLACED):
                counts[i] = 0
            counts[Counts.UNPLACED], counts[Counts.LAYER] = NO_READ, a[Arg.LAYER]
            if gates:
                gate_here[0] = gate_arriving[0] = 0
            for i in range(COUNTERS):
                i64_at(a[Arg.NEXT])[8 * i] = 0
        n_all, n_here, n_arriving = all_[0], here[0], arriving[0]
        n_needed, n_missing = counts[Counts.NEEDED], counts[Counts.MISSING]
        reads, submitted = counts[Counts.READS], counts[Counts.SUBMITTED]
        landed, unplaced = counts[Counts.LANDED], counts[Counts.UNPLACED]
        known = reads
        place = n_all
        if n_all > 0 and all_[1] > first:  # these belong in front: the order decides how results are rounded
            new = 0
            for i in range(first, last):
                new += mask[i]
            for i in range(2 * n_all, 0, -1):
                all_[i + 2 * new] = all_[i]
            place = 0
        slot, base, present = -1, 0, False
        for i in range(first, last):
            if mask[i] == 0:
                continue
            if i // per_slot != slot:
                slot = i // per_slot
                needed[n_needed] = slot
                n_needed += 1
                scores[slot] += step
                row = row_of[slot]
                present = row >= 0
                if present:
                    base = place_of(row, a[Arg.ARENA], a[Arg.OWN], a[Arg.LENT], row_bytes)
                else:
                    missing[n_missing] = slot
                    n_missing += 1
                    base = coming[slot] if held else 0
                    if base == 0:
                        at, more, near = begin + slot * stride, row_bytes, False
                        if reads > known and at >= offsets[reads - 1]:
                            end = offsets[reads - 1] + lengths[reads - 1]
                            near = at - end <= gap
                            more = at + row_bytes - end if near else row_bytes
                        if unplaced == NO_READ and landing != 0:
                            landed += more
                            if landed > room:
                                unplaced, near = reads, False
                        if landing == 0 or unplaced != NO_READ:
                            base = a[Arg.STAGED] + slot * stride
                        else:
                            base = landing + landed - row_bytes
                        if near:
                            lengths[reads - 1] += more
                        else:
                            offsets[reads], lengths[reads], places[reads] = at, row_bytes, base
                            reads += 1
                    if checked[slot] == 0:
                        _add_pair(fresh, slot, base)
                    if scores[slot] > bar:
                        _add_pair(hopeful, slot, base)
            within = i - slot * per_slot
            where = base + within * a[Arg.NEURON_BYTES]
            gate = base + a[Arg.GATE_OFFSET] + within * a[Arg.GATE_BYTES]
            all_[1 + 2 * place], all_[2 + 2 * place] = i, where
            place += 1
            n_all += 1
            if present:
                here[1 + 2 * n_here], here[2 + 2 * n_here] = i, where
                if gates:
                    gate_here[1 + 2 * n_here], gate_here[2 + 2 * n_here] = i, gate
                n_here += 1
            else:
                arriving[1 + 2 * n_arriving], arriving[2 + 2 * n_arriving] = i, where
                if gates:
                    gate_arriving[1 + 2 * n_arriving], gate_arriving[2 + 2 * n_arriving] = i, gate
                n_arriving += 1
        all_[0], here[0], arriving[0] = n_all, n_here, n_arriving
        if gates:
            gate_here[0], gate_arriving[0] = n_here, n_arriving
        totals = i64_at(a[Arg.TOTALS])
        totals[Totals.NEEDED] += n_needed - counts[Counts.NEEDED]
        totals[Totals.MISSED] += n_missing - counts[Counts.MISSING]
        counts[Counts.NEEDED], counts[Counts.MISSING], counts[Counts.READS] = n_needed, n_missing, reads
        counts[Counts.LANDED], counts[Counts.UNPLACED] = landed, unplaced
        if submits:
            for i in range(known, reads):
                totals[Totals.BYTES] += lengths[i]
            totals[Totals.READS] += reads - known
            counts[Counts.SUBMITTED] = submit(a[Arg.QUEUE], 0, submitted, min(reads, unplaced))

    return neuron_fire

"""Who fires, where their weights are, and what has to be read: the bookkeeping behind a gate.

Neurons FIRST to LAST whose activation is above the threshold, for any of the tokens, are added to the lists;
slots of theirs that are not in memory are added to the reads, near neighbours to the same one. One thread
does it, in the time of some memory accesses for each neuron, and starts the reads while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import NeuronFire as Arg
from edgellm.kernels.layout import State
from edgellm.kernels.simd.emit import I64
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import f32_at, f64_at, helper, i64_at, u8_at, u32_at

IO_URING_ENTER = 426  # number of the system call, the same on x86-64 and aarch64


@intrinsic
def _enter(typingctx: Any, ring: Any, count: Any) -> Any:
    """io_uring_enter: make the kernel take `count` requests of the submission ring. What it does not take now
    it will when somebody waits."""

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        name = "syscall"
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        call = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        zero = ir.Constant(I64, 0)
        return builder.call(
            call, [ir.Constant(I64, IO_URING_ENTER), given[0], given[1], zero, zero, zero, zero]
        )

    return types.int64(types.int64, types.int64), codegen


@helper
def submit(args, first, last):  # type: ignore[no-untyped-def]
    """Start the reads first to last, as many as there is room for; returns how many were started so far."""
    a = i64_at(args)
    last = min(last, a[Arg.DEPTH])
    if last <= first:
        return first
    offsets, lengths, places = i64_at(a[Arg.OFFSETS]), i64_at(a[Arg.LENGTHS]), i64_at(a[Arg.PLACES])
    tail = u32_at(a[Arg.TAIL])
    begin = np.int64(tail[0])
    for i in range(first, last):
        entry = a[Arg.ENTRIES] + 64 * ((begin + i - first) & a[Arg.WRAP])
        u32_at(entry)[1] = np.uint32(a[Arg.FILE])
        i64_at(entry)[1], i64_at(entry)[2] = offsets[i], places[i]
        u32_at(entry)[6] = np.uint32(lengths[i])
        i64_at(entry)[4] = i  # its tag
    tail[0] = np.uint32(begin + last - first)
    _enter(a[Arg.RING], last - first)
    return last


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
        offsets, lengths, places = i64_at(a[Arg.OFFSETS]), i64_at(a[Arg.LENGTHS]), i64_at(a[Arg.PLACES])
        per_slot, row_bytes, stride = a[Arg.PER_SLOT], a[Arg.ROW_BYTES], a[Arg.STRIDE]
        begin, gap = a[Arg.LAYER_OFFSET], a[Arg.GAP]
        step, bar, gates = f64_at(args)[Arg.STEP], f64_at(args)[Arg.BAR], a[Arg.GATE_OFFSET] != 0
        hopeful, checked = i64_at(a[Arg.HOPEFUL]), u8_at(a[Arg.CHECKED])
        if a[Arg.APPEND] == 0:
            all_[0] = here[0] = arriving[0] = 0
            counts[0] = counts[1] = counts[2] = counts[3] = counts[4] = counts[5] = 0
            if gates:
                gate_here[0] = gate_arriving[0] = 0
        n_all, n_here, n_arriving = all_[0], here[0], arriving[0]
        n_needed, n_missing, reads, n_hopeful, n_fresh = counts[0], counts[1], counts[2], counts[3], counts[4]
        submitted = counts[5]
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
                    base = a[Arg.ARENA] + row * row_bytes
                else:
                    base = a[Arg.STAGED] + slot * stride
                    missing[n_missing] = slot
                    n_missing += 1
                    n_fresh += checked[slot] == 0
                    if scores[slot] > bar:
                        hopeful[n_hopeful] = slot
                        n_hopeful += 1
                    at = begin + slot * stride
                    near = False
                    if reads > submitted and at >= offsets[reads - 1]:
                        near = at - (offsets[reads - 1] + lengths[reads - 1]) <= gap
                    if near:
                        lengths[reads - 1] = at + row_bytes - offsets[reads - 1]
                    else:
                        offsets[reads], lengths[reads], places[reads] = at, row_bytes, base
                        reads += 1
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
        counts[0], counts[1], counts[2], counts[3], counts[4] = n_needed, n_missing, reads, n_hopeful, n_fresh
        if submits:
            counts[5] = submit(args, submitted, reads)

    return neuron_fire

"""How a budget for the whole process is spent on a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm.executors.native.cost import kv_bytes_before
from edgellm.executors.native.prepare import (
    ACTIVATION_PLANES,
    CHUNK,
    counted_bytes,
    prepare,
)
from edgellm.executors.native.streamed import StreamedStore, Uses, matrices, uses
from edgellm.executors.native.weights import WeightStore
from edgellm.flash.budget import Budget, resident_bytes
from edgellm.flash.plan import Plan
from edgellm.flash.reader import Reader
from edgellm.flash.residency import ALIGNMENT, Residency, TooSmall, plan_residency
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.apart import compile_apart
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.kv_layout import CHUNK as KV_CHUNK
from edgellm.kernels.layout import align
from edgellm.kernels.simd.level import host_target
from edgellm.program.program import Program


@dataclass(frozen=True)
class Needs:
    """What a model takes besides weights. context: tokens of all sequences together; activations: bytes of
    the workspace; rows: tokens of a step; kv: what keys and values are kept in."""

    context: int
    activations: int
    rows: int
    kv: str


def spend(
    program: Program, checkpoint: Checkpoint, packed: WeightStore, dram: int, needs: Needs
) -> tuple[Budget, Residency, Uses]:
    """What of the weights may stay in memory, when the process may take `dram` bytes and holds what it holds
    now. Raises EdgeError, with the smallest budget that would do, where nothing works."""
    layouts, offsets = packed.layout
    used = uses(program)
    lookups = 0
    if used.table is not None:  # tiles that are read, and where reads land
        lookups = 2 * needs.rows * (align(layouts[used.table].stride, ALIGNMENT) + 2 * ALIGNMENT)
    kv = -(-needs.context // KV_CHUNK) * kv_bytes_before(program, needs.kv)[-1]
    budget = Budget(dram, resident_bytes(), needs.activations, kv, lookups)
    try:
        return budget, plan_residency(matrices(layouts, offsets, used), budget.weights), used
    except TooSmall as error:
        raise budget.refusal(checkpoint.path.name, error.least, needs.context) from None


def plan_model(
    program: Program, checkpoint: Checkpoint, dram: int, context: int, threads: int, kv: str
) -> Plan:
    """What NativeExecutor would do with the same arguments; loads its kernels, but no weights."""
    target = host_target()
    packed, workspace, lowered = prepare(
        program, checkpoint, threads, target, ACTIVATION_PLANES, kv, in_memory=False
    )
    kernels = [i.kernel for i in lowered.instructions]
    compile_apart(kernels, target)
    load_kernels(kernels, target)
    needs = Needs(context, counted_bytes(workspace), CHUNK, kv)
    budget, residency, _ = spend(program, checkpoint, packed, dram, needs)
    return Plan(budget, residency)


def streamed_store(
    program: Program, checkpoint: Checkpoint, packed: WeightStore, file: Path, dram: int, needs: Needs
) -> StreamedStore:
    """The weights of `packed`, whose file is `file`, within a budget of `dram` bytes for the whole process.
    Raises EdgeError as `spend` does."""
    budget, residency, used = spend(program, checkpoint, packed, dram, needs)
    layouts, offsets = packed.layout
    return StreamedStore(checkpoint, layouts, offsets, used, residency, Reader(file), needs.rows, budget)

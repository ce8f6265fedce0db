"""How a budget for the whole process is spent on a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.cost import kv_bytes_before
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.prepare import (
    ACTIVATION_PLANES,
    CHUNK,
    counted_bytes,
    prepare,
)
from edgellm.executors.native.rotary import RotaryTables
from edgellm.executors.native.streamed import StreamedStore, Uses, matrices, uses
from edgellm.executors.native.weights import WeightStore
from edgellm.flash.budget import Budget, resident_bytes
from edgellm.flash.plan import Plan
from edgellm.flash.policies import Rows
from edgellm.flash.reader import Reader
from edgellm.flash.residency import (
    ALIGNMENT,
    Residency,
    TooSmall,
    least_budget,
    plan_residency,
    resident_room,
)
from edgellm.flash.rows import RowTiles
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.apart import compile_apart
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.kv_layout import CHUNK as KV_CHUNK
from edgellm.kernels.memory import release_code
from edgellm.kernels.simd.level import host_target
from edgellm.program.program import Program


@dataclass(frozen=True)
class Needs:
    """What a model takes besides weights. context: tokens of all sequences together; activations: bytes of
    the workspace and of rotary tables, and prompts: those of them that a lone token does not need; rows:
    tokens of a step; kv: what keys and values are kept in."""

    context: int
    activations: int
    prompts: int
    rows: int
    kv: str

    @classmethod
    def of(cls, program: Program, context: int, workspace: Workspace, kv: str) -> Needs:
        """Those of an executor with this workspace."""
        activations = counted_bytes(workspace)
        prompts = max(0, activations - workspace.lone_bytes)
        return cls(context, activations + RotaryTables.nbytes(program.ops, context), prompts, CHUNK, kv)


def spend(
    program: Program, checkpoint: Checkpoint, packed: WeightStore, dram: int, needs: Needs,
    sparse: SparseFfn | None = None,
) -> tuple[Budget, Residency, Uses, Rows]:  # fmt: skip
    """What of the weights may stay in memory, when the process may take `dram` bytes and holds what it holds
    now; and the slots of each layer that a bundle keeps. Raises EdgeError, with the smallest budget that
    would do, where nothing works."""
    layouts, offsets = packed.layout
    used = uses(program, sparse)
    lookups = 0
    if used.table is not None:
        lookups = RowTiles.memory_bytes(layouts[used.table].stride, needs.rows, ALIGNMENT)
    kv = -(-needs.context // KV_CHUNK) * kv_bytes_before(program, needs.kv)[-1]
    release_code("libllvmlite")  # 40 MB, not needed again now that kernels are loaded
    budget = Budget(dram, resident_bytes(), needs.activations, kv, lookups)
    needed, rows, neurons = matrices(layouts, offsets, used), Rows(0), 0
    room = budget.weights
    if sparse is not None:  # first the matrices, then as many neurons as there is room for
        keep = not sparse.policy.nothing_stays
        rows = sparse.rows(room - resident_room(needed), needs.prompts) if keep else rows
        neurons = sparse.memory_bytes(rows.own)
        room = room - neurons if keep else min(room - neurons, least_budget(needed))
    try:
        return budget, plan_residency(needed, room), used, rows
    except TooSmall as error:
        raise budget.refusal(checkpoint.path.name, error.least + neurons, needs.context) from None


def plan_model(
    program: Program, checkpoint: Checkpoint, dram: int, context: int, threads: int, kv: str
) -> Plan:
    """What NativeExecutor would do with the same arguments; loads its kernels, but no weights."""
    target = host_target()
    sparse = SparseFfn.of(checkpoint)
    packed, workspace, lowered = prepare(
        program, checkpoint, threads, target, ACTIVATION_PLANES, kv, in_memory=False, sparse=sparse
    )
    kernels = [i.kernel for i in lowered.instructions]
    compile_apart(kernels, target)
    load_kernels(kernels, target)
    needs = Needs.of(program, context, workspace, kv)
    budget, residency, _, rows = spend(program, checkpoint, packed, dram, needs, sparse)
    return Plan(budget, residency, None if sparse is None else sparse.plan(rows))


def streamed_store(
    program: Program, checkpoint: Checkpoint, packed: WeightStore, file: Path, dram: int, needs: Needs,
    sparse: SparseFfn | None = None,
) -> tuple[StreamedStore, Rows]:  # fmt: skip
    """The weights of `packed`, whose file is `file`, within a budget of `dram` bytes for the whole process;
    and the slots of each layer that a bundle keeps. Raises EdgeError as `spend` does."""
    budget, residency, used, rows = spend(program, checkpoint, packed, dram, needs, sparse)
    layouts, offsets = packed.layout
    reader = Reader(file)
    store = StreamedStore(checkpoint, layouts, offsets, used, residency, reader, needs.rows, budget)
    return store, rows

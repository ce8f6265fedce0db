"""What is decided about a model before its weights are packed."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.executors.native import choice
from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.instructions import Lowered
from edgellm.executors.native.lower import Lowering
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.packing import TERNARY, matrix_shape
from edgellm.executors.native.weights import WeightStore
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.layout import GROUP, align
from edgellm.kernels.simd.level import Target
from edgellm.program import access, ops
from edgellm.program.program import Program

CHUNK = 256  # tokens that go through the Program at once in prefill
LOGITS_AT_ONCE = 16  # rows of them, where memory is counted
ACTIVATION_PLANES = 2  # docs/decisions/0002


def prepare(
    program: Program, checkpoint: Checkpoint, threads: int, target: Target, planes: int, kv: str,
    in_memory: bool, sparse: SparseFfn | None = None, watched: bool = False,
) -> tuple[WeightStore, Workspace, Lowered]:  # fmt: skip
    """The layout of all weights, rows of activations, and the Program lowered to them; nothing is packed.
    planes, kv: as NativeExecutor takes them; in_memory: as WeightStore does; sparse: how the
    FFNs of a bundle with neurons in slots are computed; watched: as Lowering does."""
    matrices, vectors = weights_of(program, sparse)
    base3 = in_base3(program, checkpoint, matrices, target)
    packed = WeightStore(checkpoint, matrices, vectors, base3=base3, in_memory=in_memory)
    if sparse is not None and not in_memory:
        sparse.split(0)  # with all that may be needed
    workspace = Workspace(align(CHUNK, GROUP) + GROUP, threads)
    return packed, workspace, Lowering(program, packed, workspace, planes, kv, sparse, watched).result


def counted_bytes(workspace: Workspace) -> int:
    """What a workspace holds at most under a budget, where never more than LOGITS_AT_ONCE rows of logits
    are made at once."""
    return workspace.nbytes - (workspace.rows - LOGITS_AT_ONCE) * workspace["logits"].stride


def weights_of(
    program: Program, sparse: SparseFfn | None = None
) -> tuple[list[ops.Weight], list[ops.Weight]]:
    """The matrices of all linears and embedding tables, and the vectors; in order of use, each once. sparse:
    those of its FFNs are the ones that are not in slots."""
    matrices: list[ops.Weight] = []
    vectors: list[ops.Weight] = []
    for op in program.ops:
        if sparse is not None and isinstance(op, ops.Ffn):
            found, others = sparse.weights(op)
            matrices += found
            vectors += others
            continue
        names = access.matrices(op)
        for name, weight in access.weights(op).items():
            (matrices if name in names else vectors).append(weight)
    return list(dict.fromkeys(matrices)), list(dict.fromkeys(vectors))


def in_base3(
    program: Program, checkpoint: Checkpoint, matrices: Sequence[ops.Weight], target: Target
) -> list[ops.Weight]:
    """The ternary matrices that are faster in base 3; shapes that this machine does not know are measured."""
    tables = {op.table for op in program.ops if isinstance(op, ops.Embed)}
    shapes = {
        weight: matrix_shape(weight, checkpoint.tensors[weight.name])
        for weight in matrices
        if weight not in tables and checkpoint.tensors[weight.name].type in TERNARY
    }
    choice.measure(set(shapes.values()), target)
    return [weight for weight, shape in shapes.items() if choice.base3_is_faster(shape, target)]

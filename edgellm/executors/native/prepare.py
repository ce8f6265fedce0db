"""What is decided about a model before its weights are packed."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.executors.native import choice
from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.packing import TERNARY, matrix_shape
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels.layout import GROUP, align
from edgellm.kernels.simd.level import Target
from edgellm.program import access, ops
from edgellm.program.program import Program

CHUNK = 256  # tokens that go through the Program at once in prefill
LOGITS_AT_ONCE = 16  # rows of them, where memory is counted
ACTIVATION_PLANES = 2  # docs/decisions/0002


def workspace_rows(threads: int) -> int:
    """Rows of activations."""
    return max(align(CHUNK, GROUP) + GROUP, threads)


def counted_bytes(workspace: Workspace) -> int:
    """What a workspace holds at most under a budget, where never more than LOGITS_AT_ONCE rows of logits
    are made at once."""
    return workspace.nbytes - (workspace.rows - LOGITS_AT_ONCE) * workspace["logits"].stride


def weights_of(program: Program) -> tuple[list[ops.Weight], list[ops.Weight]]:
    """The matrices of all linears and embedding tables, and the vectors; in order of use, each once."""
    matrices: list[ops.Weight] = []
    vectors: list[ops.Weight] = []
    for op in program.ops:
        for name, weight in access.weights(op).items():
            matrix = name in ("table", "gate", "up", "down") or (
                name == "weight" and isinstance(op, (ops.Linear, ops.Logits))
            )
            (matrices if matrix else vectors).append(weight)
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

"""Which path each weight takes in the native executor, in words."""

from __future__ import annotations

from edgellm.errors import EdgeError
from edgellm.executors.native.choice import base3_is_faster
from edgellm.executors.native.packing import TERNARY, Form, form_of, rows_are_uniform
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.edge import SlotTensor
from edgellm.kernels.layout import Base3Layout
from edgellm.kernels.simd.level import Target
from edgellm.program import access, ops
from edgellm.program.program import Program


def describe_form(form: Form, target: Target, planes: int, rounding: ops.InputRounding = None) -> str:
    """One phrase: layout, scales, activations and instruction set."""
    inputs = f"activations in {planes} int8 plane{'s' * (planes > 1)}"
    if rounding:
        inputs = f"activations in {rounding}, scale per token"
    if isinstance(form, str):
        inputs = f"activations rounded to {rounding}" if rounding else "float32 activations"
        return f"tile16 {form}, {inputs} ({target.level})"
    if isinstance(form, Base3Layout):
        scales = "base 3 (1.6 bits), scale per row"
    else:
        minimum = " with minimum" if form.asym else ""
        scales = f"{form.bits}-bit{minimum}, scale per {form.block if form.scaled else 'row'}"
    return f"tile16x4 {scales}, {inputs} ({target.level})"


def describe_checkpoint(
    program: Program, checkpoint: Checkpoint, target: Target, planes: int
) -> dict[str, str]:
    """Tensor name -> its path, for a model that is not loaded: nothing is packed, compiled or measured."""
    weights = [weight for op in program.ops for weight in access.weights(op).values()]
    tensors = {weight.name: checkpoint.tensors[weight.name] for weight in weights}
    tables = {op.table.name for op in program.ops if isinstance(op, ops.Embed)}
    rounding = {weight.name: kind for weight, kind in input_roundings(program).items()}
    uniform = all(rows_are_uniform(tensor) for tensor in tensors.values() if tensor.type in TERNARY)
    rows = {weight.name: weight.rows for weight in weights}
    paths = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, SlotTensor):
            paths[name] = f"in slots, {tensor.codec}, read as needed"
            continue
        if len(tensor.shape) == 1:
            paths[name] = "float32 vector"
            continue
        (first, end), k = rows[name] or (0, tensor.shape[0]), tensor.shape[-1]
        try:
            base3 = name not in tables and base3_is_faster((end - first, k), target)
            form = form_of(tensor.type, k, uniform, base3)
            paths[name] = describe_form(form, target, planes, rounding.get(name))
        except EdgeError as error:
            paths[name] = f"none: {error}"
    return paths


def input_roundings(program: Program) -> dict[ops.Weight, ops.InputRounding]:
    """How the input of every linear's and FFN's matrix is rounded."""
    found: dict[ops.Weight, ops.InputRounding] = {}
    for op in program.ops:
        if isinstance(op, ops.Linear):
            found[op.weight] = op.rounding
        elif isinstance(op, ops.Ffn):
            found |= {weight: op.rounding for weight in (op.gate, op.up, op.down) if weight is not None}
    return found

"""Check a Program before anything is allocated for it, alone or against the checkpoint it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import EdgeError
from edgellm.program.access import reads, weights, writes
from edgellm.program.ops import (
    Add,
    Attend,
    Embed,
    Ffn,
    KvAppend,
    Linear,
    Logits,
    Norm,
    Op,
    Rope,
    Scale,
    Softcap,
)
from edgellm.program.program import Program

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint

AT_LEAST = -1  # marks a row count in `expected_shapes` that may be larger than the number after it

# Tensors that no op reads: they are folded into a constant of the Program or into nothing, or they tell which
# neurons of an Ffn will fire.
_UNREAD_SUFFIXES = (
    ".scale", ".input_scale", ".rotary_emb.inv_freq", "rope_freqs.weight", ".ffn_predictor_down.weight",
    ".ffn_predictor_up.weight", ".ffn_predictor_up.bias",
)  # fmt: skip
_UNREAD_PREFIXES = ("rope_", "blk.0.rope_factors_")


def validate(program: Program, checkpoint: Checkpoint | None = None) -> None:
    """Raise EdgeError unless every buffer is written before it is read, widths and heads agree, cache
    slots exist and are appended to before they are attended, and the last ops produce "logits".

    With a checkpoint, also: every weight exists and has the shape that its op needs, and every tensor
    of a block is read by some op (an ignored one would mean another network than the one in the file).
    """
    where = program.architecture if checkpoint is None else str(checkpoint.path)
    written: set[str] = set()
    appended: set[int] = set()
    for op in program.ops:
        for name in (*reads(op), *writes(op)):
            if name not in program.buffers:
                raise EdgeError(
                    f"{where}: {_label(op)} uses the buffer {name!r}, which the program does not have."
                )
        for name in reads(op):
            if name not in written:
                raise EdgeError(f"{where}: {_label(op)} reads the buffer {name!r} before any op wrote it.")
        written.update(writes(op))
        problem = _check_widths(op, program) or _check_slot(op, program, appended)
        if problem:
            raise EdgeError(f"{where}: {_label(op)}: {problem}; the metadata of the model is inconsistent.")
        if checkpoint is not None:
            _check_weights(op, program, checkpoint)
    if "logits" not in written or program.buffers["logits"] != program.vocab_size:
        raise EdgeError(f"{where}: the program does not end in logits over {program.vocab_size} tokens.")
    if checkpoint is not None:
        _check_all_used(program, checkpoint)


def expected_shapes(op: Op, program: Program) -> dict[str, tuple[int, ...]]:
    """Weight field -> the shape that `op` needs; (AT_LEAST, n, width) stands for n rows or more."""
    width = program.buffers
    match op:
        case Embed():
            rows = program.vocab_size if op.index == "token" else program.context_length + op.offset
            return {"table": (AT_LEAST, rows, width[op.out])}
        case Norm():
            return {"weight": (op.width,), "bias": (op.width,)}
        case Linear() | Logits():
            return {"weight": (width[op.out], width[op.x]), "bias": (width[op.out],)}
        case Ffn():
            neurons, inputs, out = op.neurons, width[op.x], width[op.out]
            return {
                "gate": (neurons, inputs),
                "up": (neurons, inputs),
                "down": (out, neurons),
                "up_bias": (neurons,),
                "down_bias": (out,),
                "sub_norm": (neurons,),
            }
    return {}


def _label(op: Op) -> str:
    return f"{type(op).__name__}" + (f" of block {op.layer}" if op.layer >= 0 else "")


def _check_widths(op: Op, program: Program) -> str | None:
    """What is wrong with the widths of the buffers of `op`, as half a sentence; None if nothing."""
    width = program.buffers
    match op:
        case Norm() if op.width < 1 or width[op.x] % op.width or width[op.x] != width[op.out]:
            return f"groups of {op.width} do not divide {width[op.x]} values"
        case Rope() if op.heads * op.head_dim != width[op.x]:
            return f"{op.heads} heads of {op.head_dim} are not {width[op.x]} values"
        case Rope() if 2 * len(op.inv_freq) > op.head_dim:
            return f"{2 * len(op.inv_freq)} rotated dimensions exceed a head of {op.head_dim}"
        case KvAppend() if not op.kv_heads * op.head_dim == width[op.k] == width[op.v]:
            return f"{op.kv_heads} heads of {op.head_dim} are not {width[op.k]} keys and {width[op.v]} values"
        case Attend() if not op.heads * op.head_dim == width[op.q] == width[op.out]:
            return f"{op.heads} heads of {op.head_dim} are not {width[op.q]} values"
        case Attend() if op.kv_heads < 1 or op.heads % op.kv_heads:
            return f"{op.heads} query heads do not share {op.kv_heads} key-value heads evenly"
        case Attend() if op.window is not None and op.window < 1:
            return f"the sliding window is {op.window}"
        case Add() if not width[op.x] == width[op.y] == width[op.out]:
            return f"{width[op.x]} and {width[op.y]} values cannot be added"
        case Scale() | Softcap() if width[op.x] != width[op.out]:
            return f"{width[op.x]} values do not fit {width[op.out]}"
    return None


def _check_slot(op: Op, program: Program, appended: set[int]) -> str | None:
    if not isinstance(op, (KvAppend, Attend)):
        return None
    if not 0 <= op.slot < len(program.kv_slots):
        return f"cache slot {op.slot} does not exist"
    slot = program.kv_slots[op.slot]
    if (slot.kv_heads, slot.head_dim) != (op.kv_heads, op.head_dim):
        return f"cache slot {op.slot} has {slot.kv_heads} heads of {slot.head_dim}"
    if isinstance(op, KvAppend):
        appended.add(op.slot)
    elif op.slot not in appended:
        return f"cache slot {op.slot} is read before it is written"
    elif slot.window is not None and (op.window is None or op.window > slot.window):
        return f"cache slot {op.slot} keeps only {slot.window} positions"
    return None


def _check_weights(op: Op, program: Program, checkpoint: Checkpoint) -> None:
    expected = expected_shapes(op, program)
    for field, weight in weights(op).items():
        tensor = checkpoint.tensors.get(weight.name)
        if tensor is None:
            raise EdgeError(
                f"{checkpoint.path}: the tensor {weight.name} is missing, which the architecture "
                f"{program.architecture!r} needs; the file is incomplete or of another kind."
            )
        shape, want = tensor.shape, expected[field]
        if weight.rows is not None:
            start, stop = weight.rows
            shape = (stop - start, *shape[1:]) if 0 <= start < stop <= shape[0] else shape
        if want[0] == AT_LEAST:
            fits = len(shape) == 2 and shape[0] >= want[1] and shape[1] == want[2]
            want = want[1:]
        else:
            fits = shape == want
        if not fits:
            raise EdgeError(
                f"{checkpoint.path}: the tensor {weight.name} has a shape that disagrees with the metadata: "
                f"{shape} instead of {want}; the file is damaged or its metadata is wrong."
            )


def _check_all_used(program: Program, checkpoint: Checkpoint) -> None:
    used = {weight.name for op in program.ops for weight in weights(op).values()}
    for name in checkpoint.tensors:
        ignorable = name.endswith(_UNREAD_SUFFIXES) or name.startswith(_UNREAD_PREFIXES)
        if name.startswith("blk.") and name not in used and not ignorable:
            raise EdgeError(
                f"{checkpoint.path}: the architecture {program.architecture!r} has no use for the tensor "
                f"{name}, so the file holds another network than its metadata says."
            )

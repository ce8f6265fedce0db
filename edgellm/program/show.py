"""A Program for people (`edgellm inspect --program`) and as a dictionary for JSON."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import numpy as np

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
    Weight,
)
from edgellm.program.program import Program


def format_program(program: Program) -> str:
    """A listing, one line per op; blocks with the same ops are written once, as "blocks 0-29:"."""
    slots = sorted({f"{s.kv_heads} heads x {s.head_dim}" + _window(s.window) for s in program.kv_slots})
    lines = [
        f"{program.architecture}: vocabulary {program.vocab_size}, context {program.context_length}",
        "buffers: " + ", ".join(f"{name} {width}" for name, width in program.buffers.items()),
        f"KV cache: {len(program.kv_slots)} slots, " + "; ".join(slots),
        "",
    ]
    for blocks, ops in _sections(program):
        if blocks:
            lines.append(f"block{'s' * (len(blocks) > 1)} {_ranges(blocks)}:")
        lines += [("  " if blocks else "") + line for line in ops]
    return "\n".join(lines)


def to_dict(program: Program) -> dict[str, Any]:
    """The whole Program in plain lists, dictionaries, strings and numbers, ready for json.dumps."""
    return {
        "architecture": program.architecture,
        "vocab_size": program.vocab_size,
        "context_length": program.context_length,
        "buffers": dict(program.buffers),
        "kv_slots": [
            {"kv_heads": s.kv_heads, "head_dim": s.head_dim, "window": s.window} for s in program.kv_slots
        ],
        "ops": [
            {"op": type(op).__name__, **{f.name: _plain(getattr(op, f.name)) for f in fields(op)}}
            for op in program.ops
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Weight):
        return {"name": value.name, "rows": list(value.rows) if value.rows else None, "scale": value.scale}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _sections(program: Program) -> list[tuple[list[int], list[str]]]:
    """Runs of ops of one layer as ([layers], lines); a block joins an earlier one that reads the same.

    Layer numbers in weight and slot names become N, so that blocks differing only in them compare equal.
    """
    runs: list[tuple[int, list[str]]] = []
    for op in program.ops:
        if not runs or runs[-1][0] != op.layer:
            runs.append((op.layer, []))
        runs[-1][1].append(re.sub(rf"\b(blk\.|slot ){op.layer}\b", r"\1N", describe_op(op)))
    sections: list[tuple[list[int], list[str]]] = []
    for layer, lines in runs:
        same = next((s for s in sections if layer >= 0 and s[0] and s[1] == lines), None)
        if same:
            same[0].append(layer)
        else:
            sections.append(([layer] if layer >= 0 else [], lines))
    return sections


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _window(window: int | None) -> str:
    return "" if window is None else f", window {window}"


def _plus(weight: Weight | None) -> str:
    return "" if weight is None else f" + {weight}"


def _rounding(op: Linear | Ffn) -> str:
    return f", inputs rounded to {op.rounding}" if op.rounding else ""


def describe_op(op: Op) -> str:
    """One line of the listing: the buffer that is written, "=", the op, its inputs, weights and constants."""
    match op:
        case Embed():
            index = "token" if op.index == "token" else f"position + {op.offset}"
            factor = "" if op.scale == 1.0 else f", times {op.scale:g}"
            return f"{op.out} = embed {op.table}[{index}]{factor}"
        case Norm():
            offset = f" + {op.weight_offset:g}" if op.weight_offset else ""
            weight = f" * ({op.weight}{offset})" if offset else f" * {op.weight}" if op.weight else ""
            return f"{op.out} = {op.kind}_norm {op.x} by {op.width}{weight}{_plus(op.bias)}, eps {op.eps:g}"
        case Logits():
            return f"{op.out} = logits {op.x}, {op.weight}{_plus(op.bias)}"
        case Linear():
            return f"{op.out} = linear {op.x}, {op.weight}{_plus(op.bias)}{_rounding(op)}"
        case Rope():
            magnitude = "" if op.magnitude == 1.0 else f", magnitude {op.magnitude:g}"
            low, high = float(op.inv_freq.min()), float(op.inv_freq.max())
            return (
                f"{op.x} = rope {op.x}, {op.heads} heads x {op.head_dim}, {2 * len(op.inv_freq)} dimensions "
                f"{op.style}, frequencies {high:g} to {low:g}{magnitude}"
            )
        case KvAppend():
            return f"slot {op.slot} append {op.k}, {op.v}, {op.kv_heads} heads x {op.head_dim}"
        case Attend():
            softcap = "" if op.softcap is None else f", softcap {op.softcap:g}"
            return (
                f"{op.out} = attend {op.q}, slot {op.slot}, {op.heads} heads on {op.kv_heads} x {op.head_dim}"
                f", scale {op.scale:g}{_window(op.window)}{softcap}"
            )
        case Ffn():
            up = f"{op.up}{_plus(op.up_bias)}"
            act = f"{op.activation}>{op.threshold:g}" if op.threshold else op.activation
            gate = f"{act}({op.gate}) * {up}" if op.gate else f"{act}({up})"
            norm = f", sub norm {op.sub_norm}" if op.sub_norm else ""
            down = f"down {op.down}{_plus(op.down_bias)}"
            return f"{op.out} = ffn {op.x}, {op.neurons} neurons, {gate}{norm}, {down}{_rounding(op)}"
        case Add():
            return f"{op.out} = {op.x} + {op.y}"
        case Scale():
            return f"{op.out} = {op.factor:g} * {op.x}"
        case Softcap():
            return f"{op.out} = softcap {op.x}, {op.cap:g}"
    raise TypeError(f"unknown op {type(op).__name__}")

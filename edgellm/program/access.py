"""What an op touches: the buffers it reads and writes, and its weights. Derived from the op's fields."""

from __future__ import annotations

from dataclasses import fields

from edgellm.program.ops import Linear, Logits, Op, Rope, Weight

_INPUTS = ("x", "y", "q", "k", "v")


def reads(op: Op) -> list[str]:
    """Names of the buffers that `op` reads."""
    return [getattr(op, f.name) for f in fields(op) if f.name in _INPUTS]


def writes(op: Op) -> list[str]:
    """Names of the buffers that `op` writes; Rope works in place, KvAppend writes no buffer."""
    if isinstance(op, Rope):
        return [op.x]
    return [getattr(op, f.name) for f in fields(op) if f.name == "out"]


def weights(op: Op) -> dict[str, Weight]:
    """Field name -> Weight, for the weights that `op` has."""
    values = {f.name: getattr(op, f.name) for f in fields(op)}
    return {name: value for name, value in values.items() if isinstance(value, Weight)}


def matrices(op: Op) -> dict[str, Weight]:
    """Those of an op's weights that are matrices of linears or tables to look up in, in the order of use."""
    found = weights(op)
    linear = ("weight",) if isinstance(op, (Linear, Logits)) else ()
    return {name: found[name] for name in (*linear, "table", "gate", "up", "down") if name in found}

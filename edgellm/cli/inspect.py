"""`edgellm inspect`: what is in a model file, and what edgellm makes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.cli.options import ExecutorName

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.slots import SlotLayout
    from edgellm.formats.tensor import Tensor
    from edgellm.program import Program

LONGEST_VALUE = 60  # characters of a metadata value that are shown


def inspect(
    model: options.ModelArgument,
    program: Annotated[bool, typer.Option("--program", help="List the operations of the Program.")] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor, not one line per kind.")
    ] = False,
    executor: options.Executor = ExecutorName.native,
    json: options.Json = False,
) -> None:
    """Show the metadata, tensors and Program of MODEL, and the path that each weight takes.

    \b
    Examples:
      edgellm inspect smollm2
      edgellm inspect model.gguf --program
      edgellm inspect model.gguf --json
    """
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.hub import resolve
    from edgellm.models import build_program
    from edgellm.program import format_program

    checkpoint = open_checkpoint(resolve(model, pull=True))
    built = build_program(checkpoint)
    paths = describe(executor.value, built, checkpoint)
    if json:
        from edgellm.cli.output import print_json

        print_json(summary(checkpoint, built, paths))
        return
    print_overview(checkpoint)
    print("\ntensors")
    print_tensors(checkpoint, paths, folded=not tensors)
    if program:
        print("\nprogram\n" + format_program(built))


def describe(executor: str, program: Program, checkpoint: Checkpoint) -> dict[str, str]:
    """Tensor name -> the path it takes in that executor; nothing is packed or compiled."""
    if executor == "reference":
        from edgellm.program import access

        used = {weight.name for op in program.ops for weight in access.weights(op).values()}
        return {name: f"NumPy float32, dequantised from {_kind(checkpoint.tensors[name])}" for name in used}
    from edgellm.executors.native.describe import describe_checkpoint
    from edgellm.executors.native.prepare import ACTIVATION_PLANES
    from edgellm.kernels.simd.level import host_target

    return describe_checkpoint(program, checkpoint, host_target(), ACTIVATION_PLANES)


def _kind(tensor: Tensor) -> str:
    """The tensor's type, or what it is instead in slots."""
    from edgellm.formats.edge import SlotTensor

    return f"slots, {tensor.codec}" if isinstance(tensor, SlotTensor) else tensor.type


def summary(checkpoint: Checkpoint, program: Program, paths: Mapping[str, str]) -> dict[str, Any]:
    """Everything as plain data, for --json."""
    from dataclasses import asdict

    from edgellm.program import to_dict

    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": checkpoint.config.architecture,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "assumptions": list(checkpoint.assumptions),
        "bundle": bundle_facts(checkpoint),
        "config": plain(asdict(checkpoint.config)),
        "metadata": {key: plain(value) for key, value in checkpoint.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
                "path": paths.get(tensor.name),
            }
            for tensor in checkpoint.tensors.values()
        ],
        "program": to_dict(program),
    }


def bundle_facts(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How a bundle keeps its neurons; None for another model."""
    from edgellm.formats.edge_manifest import slots_table

    bundle = checkpoint.bundle
    if bundle is None:
        return None
    layout = bundle.layout
    if layout is None:
        return {"mode": bundle.mode, "slots": None, "slot_bytes": None, "padding_share": None}
    return {
        "mode": bundle.mode,
        "slots": slots_table(layout),
        "slot_bytes": layout.stride,
        "padding_share": layout.padding_share,
    }


def plain(value: Any) -> Any:
    """A metadata value for JSON; of a long list (the vocabulary) only its length."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if len(value) <= LONGEST_VALUE else f"{len(value)} values"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_overview(checkpoint: Checkpoint) -> None:
    """The numbers a person looks for first, then the file's metadata."""
    from edgellm.cli.output import printable, quantity, size
    from edgellm.hub.packs import pack_path

    config = checkpoint.config
    bits = 8 * checkpoint.nbytes / max(1, checkpoint.parameters)
    rows = {
        "file": f"{checkpoint.path} ({checkpoint.format})",
        "architecture": config.architecture,
        "parameters": f"{checkpoint.parameters} ({quantity(checkpoint.parameters)})",
        "weights": f"{size(checkpoint.nbytes)}, {bits:.2f} bits each",
        "context": config.context_length,
        "vocabulary": config.vocab_size,
        "blocks": f"{config.n_layers} of hidden size {config.hidden_size}, FFN size {config.ffn_size}",
        "heads": f"{config.n_heads} on {config.n_kv_heads} of {config.head_dim}",
    }
    pack = pack_path(checkpoint.path)
    if pack.is_file():
        rows["packed"] = f"{pack} ({size(pack.stat().st_size)})"
    if checkpoint.bundle is not None:
        rows["bundle"] = f"mode {checkpoint.bundle.mode}, {slots_in_words(checkpoint.bundle.layout)}"
    if checkpoint.assumptions:
        rows["assumed"] = "; ".join(checkpoint.assumptions)
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    print("\nmetadata")
    for key, value in checkpoint.metadata.items():
        text = printable(" ".join(str(plain(value)).split()))
        text = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
        print(f"  {printable(key)} = {text}")


def slots_in_words(layout: SlotLayout | None) -> str:
    """Where the neurons of a bundle are."""
    if layout is None:
        return "no neurons in slots"
    neurons = f"{layout.per_slot} neuron{'s' * (layout.per_slot > 1)}"
    return f"{neurons} to a slot of {layout.stride} bytes, {layout.padding_share:.1%} of it padding"


def print_tensors(checkpoint: Checkpoint, paths: Mapping[str, str], *, folded: bool) -> None:
    """One line per tensor, or per kind: same name but for the block, same type, shape and path."""
    from edgellm.cli.output import printable, size

    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for tensor in checkpoint.tensors.values():
        name = printable(re.sub(r"\.\d+\.", ".N.", tensor.name) if folded else tensor.name)
        shape = " x ".join(str(side) for side in tensor.shape)
        groups.setdefault((name, tensor.type, shape, paths.get(tensor.name, "not used")), []).append(tensor)
    widths = [max(len(key[i]) for key in groups) for i in range(3)]
    for (name, kind, shape, path), members in groups.items():
        total = size(sum(tensor.nbytes for tensor in members))
        count = f"{len(members):>3} x  " if folded else ""
        print(f"  {count}{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {total:>10}  {path}")

"""`edgellm convert`: write a model as a GGUF file with another type of weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import options
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.convert import Converted


class TypeName(str, Enum):
    """Types that weights can be written in."""

    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"
    Q8_0 = "Q8_0"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_1 = "Q4_1"
    Q4_0 = "Q4_0"


class OuterName(str, Enum):
    """Types that embedding and output can be written in."""

    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"
    Q8_0 = "Q8_0"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_1 = "Q4_1"
    Q4_0 = "Q4_0"


Out = Annotated[
    Path | None, typer.Argument(metavar="OUT.gguf", help="The file to write.", show_default=False)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT.gguf", help="The same, as an option.")
]
Type = Annotated[
    TypeName,
    typer.Option("--type", help="Type of the blocks' matrices: 1.69 bits a weight in TQ1_0, 2.06 in TQ2_0."),
]
Outer = Annotated[
    OuterName | None, typer.Option("--outer", help="Type of embedding and output [default: the model's].")
]


def convert(
    model: options.ModelArgument,
    out: Out = None,
    *,
    type_name: Type,
    outer: Outer = None,
    output: Output = None,
    json: options.Json = False,
) -> None:
    """Write MODEL as a GGUF file with another type of weights, for edgellm and llama.cpp.

    TQ1_0 and TQ2_0 take ternary weights and change none: those of TQ files, of BitNet folders, and of
    floating-point files that hold nothing else. A BitNet's master weights are rounded as the model rounds
    them when it runs.

    \b
    Examples:
      edgellm convert bitnet-folder bitnet.gguf --type TQ2_0
      edgellm convert bitnet.gguf smaller.gguf --type TQ1_0 --outer Q8_0
    """
    from edgellm.cli.output import note, print_json
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.formats.convert import convert as write
    from edgellm.hub import resolve
    from edgellm.hub.progress import byte_bar

    if (out is None) == (output is None):
        raise EdgeError("Name the file to write once: as OUT.gguf behind the model, or with -o.")
    path = out or output
    assert path is not None
    checkpoint = open_checkpoint(resolve(model, pull=True))
    tokenizer = None
    if checkpoint.format == "hf":
        from edgellm.text.to_gguf import tokenizer_keys

        tokenizer = tokenizer_keys(checkpoint)
    with byte_bar(f"{path.name}", show=True) as advance:
        done = write(
            checkpoint,
            path,
            type_name.value,
            outer=outer.value if outer else None,
            tokenizer=tokenizer,
            progress=advance,
        )
    for line in remarks(checkpoint, done):
        note(line)
    if json:
        print_json(
            {
                "path": str(done.path),
                "bytes": done.bytes,
                "architecture": done.architecture,
                "type": type_name.value,
                "types": dict(done.types),
                "rounded": done.rounded,
            }
        )
    else:
        print(done.path)


def remarks(checkpoint: Checkpoint, done: Converted) -> list[str]:
    """What a person should know of the file."""
    lines = []
    if done.rounded:
        lines.append(f"{done.rounded} matrices of master weights were rounded to ternary, as BitNet does.")
    if done.architecture in ("bitnet-b1.58", "bitnet-25"):
        lines.append(
            f"The architecture {done.architecture} (ReLU squared) is known to edgellm and bitnet.cpp; "
            "llama.cpp itself has only bitnet, with SiLU."
        )
    elif done.architecture == "bitnet" and "output.weight" in checkpoint.tensors:
        lines.append(
            "llama.cpp reads no BitNet with an output matrix of its own, as this one has; edgellm does."
        )
    return lines

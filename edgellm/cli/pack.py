"""`edgellm pack`: write a model as a bundle, from whose file single neurons can be read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.edge_pack import Packed


class ModeName(str, Enum):
    """How the FFNs of a bundle are to be run."""

    auto = "auto"
    sparse_exact = "sparse-exact"
    sparse_predicted = "sparse-predicted"
    stream = "stream"


class DownName(str, Enum):
    """Codecs of the columns that cannot be kept as they are."""

    auto = "auto"
    q4_0 = "q4_0"
    q8_0 = "q8_0"


Out = Annotated[Path, typer.Argument(metavar="OUT.edge", help="The folder to write.", show_default=False)]
Mode = Annotated[
    ModeName,
    typer.Option("--mode", help="auto: sparse-exact for models with ReLU, stream for all others."),
]
Down = Annotated[
    DownName,
    typer.Option(
        "--down",
        help="What columns become whose blocks must be quantised anew; auto: q4_0 if the model has no more "
        "than 4 bits, else q8_0.",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Put the neurons that fire most on this text first."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]


def pack(
    model: options.ModelArgument,
    out: Out,
    mode: Mode = ModeName.auto,
    down: Down = DownName.auto,
    text: Text = None,
    threads: options.Threads = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Write MODEL as a bundle, from which neurons are read one by one when memory is short.

    With ReLU few neurons fire for a token, and only theirs are read. What is done when this is stopped is
    kept: the same command goes on there.

    \b
    Examples:
      edgellm pack model.gguf model.edge
      edgellm pack model.gguf model.edge --text book.txt
      edgellm run model.edge --dram 2GiB "Why is the sky blue?"
    """
    from edgellm.cli.output import note, print_json
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.formats.edge_pack import check_place
    from edgellm.formats.edge_pack import pack as write
    from edgellm.formats.edge_plan import refuse_bundle
    from edgellm.hub import resolve
    from edgellm.hub.progress import byte_bar

    check_place(out, force)  # before a text is read for long
    checkpoint = open_checkpoint(resolve(model, pull=True))
    refuse_bundle(checkpoint)
    kind = mode.value if mode != ModeName.auto else _mode_for(checkpoint)
    found: dict[str, Any] = {}
    if text is not None:
        if kind == "stream":
            raise EdgeError(f"{out}: a bundle of the mode stream has no order of neurons; leave out --text.")
        found = _calibrated(checkpoint, text, threads)
    if checkpoint.format == "hf":
        from edgellm.text.to_gguf import tokenizer_keys

        found["tokenizer"] = tokenizer_keys(checkpoint)
    with byte_bar(out.name, show=True) as advance:
        done = write(
            checkpoint,
            out,
            mode=kind,
            down=down.value,
            gate_in_slots=kind == "sparse-predicted",
            force=force,
            progress=advance,
            note=note,
            **found,
        )
    if json:
        print_json(report(done))
    else:
        print_packed(done)


def _mode_for(checkpoint: Checkpoint) -> str:
    """What fits the model best, and why if that needs a word."""
    from edgellm.cli.output import note
    from edgellm.formats.edge_plan import RELU

    activation = checkpoint.config.activation
    if activation in RELU:
        return "sparse-exact"
    note(f"The FFNs are dense (activation {activation}: every neuron fires), so the mode is stream.")
    return "stream"


def _calibrated(checkpoint: Checkpoint, text: Path, threads: int | None) -> dict[str, Any]:
    """Arguments of edge_pack.pack: order, frequency and calibration, by how often neurons fire on a text."""
    import hashlib

    from edgellm.cli.flash import steps
    from edgellm.cli.output import read_text
    from edgellm.cpus import default_threads
    from edgellm.flash.calibrate import firing

    words = read_text(text)
    with steps(f"reading {text.name}") as advance:
        fired = firing(checkpoint, words, threads or default_threads(), progress=advance)
    return {
        "order": fired.order,
        "frequency": fired.frequency,
        "calibration": {
            "text": text.name,
            "sha256": hashlib.sha256(words.encode()).hexdigest(),
            "tokens": fired.tokens,
            "mean_frequency": float(fired.frequency.mean()),
        },
    }


def report(done: Packed) -> dict[str, Any]:
    """What was written, as plain data."""
    from edgellm.formats.edge_manifest import slots_table

    return {
        "path": str(done.path),
        "bytes": done.bytes,
        "mode": done.mode,
        "slots": None if done.layout is None else slots_table(done.layout),
        "padding_share": done.padding_share,
        "loss": {role: dict(facts) for role, facts in done.loss.items()},
    }


def print_packed(done: Packed) -> None:
    """The same for a person."""
    from edgellm.cli.output import size

    print(f"{done.path}: {size(done.bytes)}, mode {done.mode}")
    layout = done.layout
    if layout is None:
        return
    per_slot = "one" if layout.per_slot == 1 else layout.per_slot
    print(
        f"  {layout.layers} layers of {layout.neurons} neurons, {per_slot} to a slot of {layout.stride} "
        f"bytes, {done.padding_share:.1%} of it padding"
    )
    for role, facts in done.loss.items():
        how = "as in the model"
        if not facts["lossless"]:
            how = (
                f"quantised anew, {facts['relative_rms']:.2%} off (RMS; {facts['worst_relative_rms']:.2%} in "
                f"layer {facts['worst_layer']})"
            )
        print(f"  {role:<5}{layout.codecs[role]:<5} {how}")  # type: ignore[index]

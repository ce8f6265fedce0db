"""`edgellm pack`: write a model as a bundle, from whose file single neurons can be read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.edge_pack import Packed
    from edgellm.perplexity import Estimate

COST_CONTEXT = 256  # tokens of a chunk
COST_CHUNKS = 64  # that are scored, at most


class ModeName(str, Enum):
    """How the FFNs of a bundle are to be run."""

    auto = "auto"
    sparse_exact = "sparse-exact"
    sparse_predicted = "sparse-predicted"
    sparse_threshold = "sparse-threshold"
    stream = "stream"


class DownName(str, Enum):
    """Codecs of the columns that cannot be kept as they are."""

    auto = "auto"
    q4_0 = "q4_0"
    q8_0 = "q8_0"


Out = Annotated[Path, typer.Argument(metavar="OUT.edge", help="The folder to write.", show_default=False)]
Mode = Annotated[
    ModeName,
    typer.Option(
        "--mode",
        help="auto: sparse-exact for models with ReLU, stream for all others; sparse-threshold changes what "
        "the model computes.",
    ),
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
    typer.Option(
        "--text",
        metavar="FILE",
        help="Put the neurons that fire most on this text first; a .json file holds token ids.",
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        "--sparsity", metavar="SHARE", help="For sparse-threshold: the share of activations to drop, as 0.5."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]


def pack(
    model: options.ModelArgument,
    out: Out,
    mode: Mode = ModeName.auto,
    down: Down = DownName.auto,
    text: Text = None,
    sparsity: Sparsity = None,
    threads: options.Threads = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Write MODEL as a bundle, from which neurons are read one by one when memory is short.

    With ReLU few neurons fire for a token, and only theirs are read. What is done when this is stopped is
    kept: the same command goes on there.

    With sparse-threshold a model of any activation drops the smallest. Three quarters of the text show which,
    and the rest what that costs: the perplexity of the model and of the bundle.

    \b
    Examples:
      edgellm pack model.gguf model.edge
      edgellm pack model.gguf model.edge --text book.txt
      edgellm pack model.gguf model.edge --mode sparse-threshold --sparsity 0.5 --text book.txt
      edgellm run model.edge --dram 2GiB "Why is the sky blue?"
    """
    from edgellm.cli.loading import read_tokens
    from edgellm.cli.output import note, print_json, read_text
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.formats.edge_pack import check_place
    from edgellm.formats.edge_pack import pack as write
    from edgellm.formats.edge_plan import refuse_bundle
    from edgellm.hub import resolve
    from edgellm.hub.progress import byte_bar

    _check_sparsity(mode, sparsity, text)
    check_place(out, force)  # before a text is read for long
    checkpoint = open_checkpoint(resolve(model, pull=True))
    refuse_bundle(checkpoint)
    kind = mode.value if mode != ModeName.auto else _mode_for(checkpoint)
    found: dict[str, Any] = {}
    words: str | list[int] = ""
    if text is not None:
        if kind == "stream":
            raise EdgeError(f"{out}: a bundle of the mode stream has no order of neurons; leave out --text.")
        words = read_tokens(text, 1).tolist() if text.suffix == ".json" else read_text(text)
        found = _calibrated(checkpoint, text.name, words, threads, sparsity)
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
    cost = None
    if sparsity is not None and text is not None and isinstance(words, str):
        cost = _measured(checkpoint, out, text.name, split_text(words)[1], threads)
    if json:
        print_json(report(done) | ({} if sparsity is None else {"perplexity": cost}))
        return
    print_packed(done)
    if cost is not None:
        print(
            f"  perplexity {cost['bundle']:.4f} instead of {cost['model']:.4f} ({cost['tokens']} tokens in "
            f"chunks of {cost['ctx']})"
        )


def _mode_for(checkpoint: Checkpoint) -> str:
    """What fits the model best, and why if that needs a word."""
    from edgellm.cli.output import note
    from edgellm.formats.edge_plan import RELU

    activation = checkpoint.config.activation
    if activation in RELU:
        return "sparse-exact"
    note(f"The FFNs are dense (activation {activation}: every neuron fires), so the mode is stream.")
    return "stream"


def _check_sparsity(mode: ModeName, sparsity: float | None, text: Path | None) -> None:
    """Raises EdgeError for options of sparse-threshold that are missing, or given with another mode."""
    if mode != ModeName.sparse_threshold:
        if sparsity is not None:
            raise EdgeError("--sparsity is for --mode sparse-threshold, and for no other mode.")
        return
    if sparsity is None or text is None or text.suffix == ".json":
        raise EdgeError("The mode sparse-threshold needs --sparsity, as 0.5, and a --text to find it on.")
    if not 0 < sparsity < 1:
        raise EdgeError(f"The sparsity is {sparsity:g}; it must be more than 0 and less than 1.")


def split_text(text: str) -> tuple[str, str]:
    """About the first three quarters of a text, to the end of a line where there is one, and the rest."""
    wanted = 3 * len(text) // 4
    at = text.rfind("\n", len(text) // 2, wanted) + 1 or wanted
    return text[:at], text[at:]


def _calibrated(
    checkpoint: Checkpoint, name: str, words: str | list[int], threads: int | None, sparsity: float | None
) -> dict[str, Any]:
    """Arguments of edge_pack.pack: order, frequency and calibration, by how often neurons fire on the text or
    token ids `words`; with `sparsity` also thresholds, by how strongly they do on the first part of it."""
    import hashlib

    from edgellm.cli.flash import steps
    from edgellm.cpus import default_threads
    from edgellm.flash.calibrate import firing

    dropped: dict[str, float] = {}
    first = words
    if sparsity is not None and isinstance(words, str):
        dropped, first = {"sparsity": sparsity}, split_text(words)[0]
    with steps(f"reading {name}") as advance:
        fired = firing(checkpoint, first, threads or default_threads(), progress=advance, **dropped)
    found: dict[str, Any] = {
        "order": fired.order,
        "frequency": fired.frequency,
        "calibration": {
            "text": name,
            "sha256": hashlib.sha256(str(words).encode()).hexdigest(),
            "tokens": fired.tokens,
            "mean_frequency": float(fired.frequency.mean()),
            **dropped,
        },
    }
    if fired.thresholds is not None:
        found["thresholds"] = [float(x) for x in fired.thresholds]
    return found


def _measured(
    checkpoint: Checkpoint, out: Path, name: str, rest: str, threads: int | None
) -> dict[str, Any] | None:
    """The perplexity of the model and of its bundle `out` on the rest of a text, which the manifest gets
    too: "model", "bundle", "tokens" that were scored, and "ctx"; None if it cannot be told."""
    import math

    from edgellm.cli.flash import steps
    from edgellm.cli.output import note
    from edgellm.formats.edge import open_edge
    from edgellm.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    context = min(COST_CONTEXT, checkpoint.config.context_length)
    tokens = tokenizer.encode(rest, special=False)[: COST_CHUNKS * context]
    if len(tokens) < 2 * context:
        note(
            f"{name}: its last quarter has {len(tokens)} tokens, and it takes {2 * context} to measure what "
            "the thresholds cost."
        )
        return None
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    chunks, found = len(tokens) // context, []
    with steps(f"comparing on {name}") as advance:
        for i, one in enumerate((checkpoint, open_edge(out))):
            for last in _estimates(one, tokens, context, bos, threads):
                advance(i * chunks + last.chunks, 2 * chunks)
            found.append(last.perplexity)
    if not all(map(math.isfinite, found)):
        note(f"{name}: the perplexity on its last quarter is not a finite number.")
        return None
    scored = chunks * (context - 1 - context // 2)
    cost = {"model": found[0], "bundle": found[1], "tokens": scored, "ctx": context}
    _note_cost(out, cost)
    return cost


def _estimates(
    checkpoint: Checkpoint, tokens: Sequence[int], context: int, bos: int | None, threads: int | None
) -> Iterator[Estimate]:
    """The running perplexity of a model that is all in memory."""
    from edgellm.cpus import default_threads
    from edgellm.executors.native import NativeExecutor
    from edgellm.models import build_program
    from edgellm.perplexity import estimates

    executor = NativeExecutor(build_program(checkpoint, context), checkpoint, threads or default_threads())
    try:
        yield from estimates(executor.new_session(context), tokens, context, bos)
    finally:
        executor.close()


def _note_cost(out: Path, cost: dict[str, Any]) -> None:
    """Put into the manifest of the bundle `out` what its thresholds cost."""
    import json

    from edgellm.formats.edge_manifest import MANIFEST, read_manifest
    from edgellm.formats.edge_work import write_file

    values = dict(read_manifest(out).values)
    values["calibration"] = {**values["calibration"], "perplexity": cost}
    try:
        write_file(out / MANIFEST, json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise EdgeError(f"{out / MANIFEST}: cannot be written ({error.strerror or error}).") from None


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

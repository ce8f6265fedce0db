"""`edgellm predictor`: learn which neurons of a bundle will fire."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options

if TYPE_CHECKING:
    from edgellm.flash.predictor import Trained
    from edgellm.flash.predictor_cost import Cost

predictor = typer.Typer(add_completion=False, rich_markup_mode=None)


@predictor.callback()
def _predictor() -> None:
    """Predict which neurons of a bundle will fire, before the gate is computed.

    \b
    Example:
      edgellm predictor train model.edge --model model.gguf --text book.txt
    """


@predictor.command()
def train(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle to train it for.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="SOURCE", help="The model that the bundle was packed from."),
    ],
    text: Annotated[
        Path,
        typer.Option("--text", metavar="FILE", help="A UTF-8 text, better of tens of thousands of tokens."),
    ],
    rank: Annotated[int, typer.Option("--rank", min=1, help="Width of the hidden layer.")] = 128,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Train a low-rank predictor for each layer of BUNDLE, and store it there.

    The SOURCE is run over the text, and for each of its layers a small network learns from the inputs of the
    FFN which neurons fire. The last part of the text is held out: on that the table compares them, and
    tells the model's perplexity with each layer predicted, and no other.

    \b
    Examples:
      edgellm predictor train model.edge --model model.gguf --text book.txt
      edgellm predictor train model.edge --model model.gguf --text book.txt --rank 256 --json
    """
    from dataclasses import replace

    from edgellm.cli.flash import steps
    from edgellm.cli.output import note, print_json, read_text
    from edgellm.cpus import default_threads
    from edgellm.errors import EdgeError
    from edgellm.flash import predictor as learner
    from edgellm.flash.predictor_cost import measure
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.formats.edge import open_edge
    from edgellm.hub import resolve
    from edgellm.text.tokenizer import load_tokenizer

    opened = open_edge(resolve(bundle), predictor=False).bundle  # an older one is replaced
    assert opened is not None
    source = open_checkpoint(resolve(model))
    if source.format == "edge":
        raise EdgeError(f"{source.path}: this is a bundle; give the model that it was packed from.")
    learner.check_source(source, opened)  # before a text is read for long
    chunks = learner.chunks_of(source, read_text(text))
    threads = threads or default_threads()
    with steps(f"learning from {text.name}") as advance:
        trained = learner.train(source, opened, chunks, threads, rank=rank, progress=advance)
    tokenizer = load_tokenizer(source)
    with steps("measuring perplexity") as advance:
        cost = measure(
            source, opened, trained.weights, chunks[learner.learnt_from(chunks) :],
            threads, tokenizer.bos_id if tokenizer.add_bos else None, advance,
        )  # fmt: skip
    figures = (replace(one, perplexity=p) for one, p in zip(trained.figures, cost.layers, strict=True))
    trained = replace(trained, figures=tuple(figures))
    path = learner.save(trained, opened, text.name)
    if json:
        print_json({"path": str(path), "bytes": path.stat().st_size, **report(trained, cost)})
        return
    print_table(trained)
    note(
        f"Perplexity on {cost.tokens} of the tokens held out: {cost.without:.2f} as it is, {cost.all:.2f} "
        "with all layers predicted."
    )
    note(f"Trained on {trained.tokens} tokens, compared on {trained.held_out} others; kept in {path}.")


def report(trained: Trained, cost: Cost) -> dict[str, Any]:
    """What was learnt, and what it costs, as plain data."""
    from dataclasses import asdict

    return {
        "rank": trained.rank,
        "tokens": trained.tokens,
        "held_out_tokens": trained.held_out,
        "epochs": trained.epochs,
        "layers": [asdict(one) for one in trained.figures],
        "perplexity": {"tokens": cost.tokens, "without": cost.without, "all_layers": cost.all},
    }


def print_table(trained: Trained) -> None:
    """How well it predicts each layer, for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("layer", "fire", "predicted", "recall", "precision", "perplexity"):
        table.add_column(name, justify="right")
    for layer, one in enumerate(trained.figures):
        shares = (one.fires, one.predicted, one.recall, one.precision)
        table.add_row(
            str(layer),
            *("-" if share is None else f"{share:.1%}" for share in shares),
            "-" if one.perplexity is None else f"{one.perplexity:.3f}",
        )
    Console().print(table)

"""`edgellm perplexity`: how well a model predicts a text, comparable with llama-perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import options
from edgellm.cli.options import ExecutorName
from edgellm.errors import CheckFailed

if TYPE_CHECKING:
    from edgellm.perplexity import Estimate


def perplexity(
    model: options.ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A UTF-8 text.", show_default=False)],
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=8, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Score only the first so many chunks.")
    ] = None,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    json: options.Json = False,
) -> None:
    """Measure the perplexity of MODEL on the text FILE, by llama-perplexity's method.

    The text is cut into chunks of --ctx tokens; the second half of each is scored.

    \b
    Example:
      edgellm perplexity smollm2 book.txt --ctx 512
    """
    from edgellm.cli.loading import load_model
    from edgellm.cli.output import print_json, read_text
    from edgellm.perplexity import chunk_count, estimates

    text = read_text(file).removesuffix("\n")  # llama-perplexity drops one newline at the end
    with load_model(model, executor=executor.value, threads=threads, context=ctx) as loaded:
        tokenizer = loaded.tokenizer
        tokens = tokenizer.encode(text, special=False)
        count = min(chunk_count(tokens, ctx), chunks or len(tokens))
        bos = tokenizer.bos_id if tokenizer.add_bos else None
        running = estimates(loaded.new_session(), tokens, ctx, bos, count)
        result = _last(running, count)
    if not math.isfinite(result.perplexity):
        raise CheckFailed(f"{model}: the model's logits on {file} are not finite numbers.")
    if json:
        print_json(
            {
                "perplexity": result.perplexity,
                "stderr": result.stderr,
                "tokens": result.tokens,
                "chunks": result.chunks,
                "ctx": ctx,
                "model": model,
                "executor": executor.value,
                "threads": loaded.threads,
            }
        )
    else:
        print(
            f"perplexity {result.perplexity:.4f} +/- {result.stderr:.5f} "
            f"({result.tokens} tokens in {result.chunks} chunks of {ctx})"
        )


def _last(running: Iterator[Estimate], count: int) -> Estimate:
    """The final estimate; the running one is shown on standard error while it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("perplexity {task.fields[value]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=count, value="...")
        for estimate in running:
            bar.update(task, completed=estimate.chunks, value=f"{estimate.perplexity:.4f}")
    return estimate

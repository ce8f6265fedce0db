"""`edgellm perplexity`: how well a model predicts a text, comparable with llama-perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import options
from edgellm.cli.options import ActivationsName, ExecutorName, KvName
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
    kv: options.Kv = KvName.fp16,
    activations: options.Activations = ActivationsName.int16,
    dram: options.Dram = None,
    json: options.Json = False,
) -> None:
    """Measure the perplexity of MODEL on the text FILE, by llama-perplexity's method.

    The text is cut into chunks of --ctx tokens; the second half of each is scored. With --kv int8 it is
    measured with a KV cache in float16 too, and the two are compared.

    \b
    Examples:
      edgellm perplexity smollm2 book.txt --ctx 512
      edgellm perplexity smollm2 book.txt --kv int8
    """
    from edgellm.cli.output import print_json, read_text

    text = read_text(file).removesuffix("\n")  # llama-perplexity drops one newline at the end

    def measure(kind: str) -> tuple[Estimate, int]:
        found, used = _measure(
            model,
            text,
            ctx,
            chunks,
            executor=executor.value,
            threads=threads,
            kv=kind,
            activations=activations.value,
            dram=dram,
        )
        if not math.isfinite(found.perplexity):
            raise CheckFailed(f"{model}: the model's logits on {file} are not finite numbers.")
        return found, used

    result, used = measure(kv.value)
    plain = measure("fp16")[0] if kv != KvName.fp16 else None
    if json:
        about = {
            "ctx": ctx,
            "model": model,
            "executor": executor.value,
            "kv": kv.value,
            "activations": activations.value,
            "threads": used,
        }
        against = {} if plain is None else {"fp16": asdict(plain), "ratio": _ratio(result, plain)}
        print_json({**asdict(result), **about, **against})
        return
    scored = f"({result.tokens} tokens in {result.chunks} chunks of {ctx})"
    print(f"perplexity {result.perplexity:.4f} +/- {result.stderr:.5f} {scored}")
    if plain is not None:
        print(
            f"with the KV cache in fp16 {plain.perplexity:.4f} +/- {plain.stderr:.5f}: "
            f"{kv.value} changes it by {_ratio(result, plain) - 1:+.3%}"
        )


def _ratio(result: Estimate, plain: Estimate) -> float:
    return result.perplexity / plain.perplexity


def _measure(
    model: str,
    text: str,
    ctx: int,
    chunks: int | None,
    *,
    executor: str,
    threads: int | None,
    kv: str,
    activations: str,
    dram: int | None,
) -> tuple[Estimate, int]:
    """The estimate, and the threads that it was made with."""
    from edgellm.cli.loading import load_model
    from edgellm.perplexity import chunk_count, estimates

    with load_model(
        model, executor=executor, threads=threads, context=ctx, kv=kv, activations=activations, dram=dram
    ) as loaded:
        tokenizer = loaded.tokenizer
        tokens = tokenizer.encode(text, special=False)
        count = min(chunk_count(tokens, ctx), chunks or len(tokens))
        bos = tokenizer.bos_id if tokenizer.add_bos else None
        return _last(estimates(loaded.new_session(), tokens, ctx, bos, count), count), loaded.threads


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

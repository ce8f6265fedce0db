"""`edgellm flash`: what the disk under a model can do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli.options import Json
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.flash.device import DeviceModel
    from edgellm.flash.probe import Advance

CHART = Path("flash-probe.svg")
MODES = {True: "O_DIRECT", False: "buffered, nothing cached"}

flash = typer.Typer(add_completion=False, rich_markup_mode=None)


@flash.callback()
def _flash() -> None:
    """Measure the disk that a model is read from.

    \b
    Example:
      edgellm flash probe .
    """


@flash.command()
def probe(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder on the disk to measure, or a file on it.")
    ],
    json: Json = False,
    svg: Annotated[Path, typer.Option("--svg", metavar="FILE", help="Where to draw the curves.")] = CHART,
    again: Annotated[
        bool, typer.Option("--again", help="Measure although this disk was measured before.")
    ] = False,
) -> None:
    """Measure random and sequential reads from the disk under PATH, and fit the cost of a request.

    Writes a scratch file of at most 512 MiB there, without a name, and takes about 25 seconds. The result is
    kept in the cache. Measure while the machine does nothing else.

    A request costs a fixed time, and then its bytes take theirs. Two neighbours that are less than "gap"
    apart are better read as one. Requests of "fast from" or more reach 95 % of the highest speed.

    \b
    Examples:
      edgellm flash probe .
      edgellm flash probe ~/models --again --svg disk.svg
      edgellm flash probe model.gguf --json
    """
    from edgellm.cli.output import note, print_json
    from edgellm.flash.probe import load_or_probe, model_path

    with steps(f"reading {path}") as advance:
        model = load_or_probe(path, again=again, advance=advance)
    kept = model_path(path)
    draw(model, svg)
    if json:
        print_json({**report(model), "kept": str(kept), "svg": str(svg)})
    else:
        print_tables(model)
    note(f"Measured {model.date}, kept in {kept}; curves in {svg}.")


@contextmanager
def steps(label: str) -> Iterator[Advance]:
    """A progress bar on standard error, if that is a terminal; it appears with the first step."""
    from edgellm.hub.progress import is_terminal

    if not is_terminal():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(label), total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


def report(model: DeviceModel) -> dict[str, Any]:
    """The model as plain data, with what is derived from it."""
    fits = []
    for direct in _modes(model):
        for depth in model.depths(direct):
            fit = model.fit(depth, direct)
            fits.append(
                {
                    "direct": direct,
                    "depth": depth,
                    "request_seconds": fit.request_seconds,
                    "bytes_per_second": fit.bytes_per_second if math.isfinite(fit.bytes_per_second) else None,
                    "gap_bytes": fit.gap_bytes,
                    "error": fit.error,
                    "longest": model.longest(depth, direct),
                }
            )
    return {**model.to_dict(), "fits": fits}


def draw(model: DeviceModel, file: Path) -> None:
    """Throughput over the size of a request, a line for each depth. Raises EdgeError if that fails."""
    from edgellm.flash.chart import Axis, Series, line_chart

    panels = []
    for direct in _modes(model):
        sizes, lines = model.sizes(direct), []
        for depth in reversed(model.depths(direct)):
            speeds = [model.cell(nbytes, depth, direct).bytes_per_second / 1e6 for nbytes in sizes]
            lines.append(Series(f"depth {depth}", sizes, speeds))
        panels.append((f"Random reads, {MODES[direct]}", lines))
    x = Axis("bytes of a request", log=True, write=_short, ticks=model.sizes())
    text = line_chart(f"{model.device} ({model.file_system})", panels, x, Axis("MB/s", log=True))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()}).") from None


def print_tables(model: DeviceModel) -> None:
    """The measured speeds and the fitted costs, for a person."""
    from rich.console import Console

    console = Console()
    console.print(f"{model.device} ({model.file_system}), read by {model.engine}", highlight=False)
    for direct in _modes(model):
        depths = model.depths(direct)
        speeds = _table("bytes", *(f"depth {depth}" for depth in depths))
        for nbytes in model.sizes(direct):
            cells = [model.cell(nbytes, depth, direct) for depth in depths]
            speeds.add_row(_short(nbytes), *(f"{cell.bytes_per_second / 1e6:.0f}" for cell in cells))
        console.print(f"\nRandom reads, {MODES[direct]}, MB/s", highlight=False)
        console.print(speeds)
        costs = _table("depth", "a request", "its bytes", "error", "gap", "fast from", "sequential")
        for depth, streamed in zip(depths, model.sequential(direct), strict=True):
            fit = model.fit(depth, direct)
            costs.add_row(
                str(depth),
                f"{fit.request_seconds * 1e6:.1f} us",
                f"{fit.bytes_per_second / 1e6:.0f} MB/s",
                f"{fit.error:.0%}",
                f"{fit.gap_bytes / 1024:.0f}K",
                _short(model.longest(depth, direct)),
                f"{streamed.bytes_per_second / 1e6:.0f} MB/s",
            )
        console.print(f"\nWhat they cost, {MODES[direct]}", highlight=False)
        console.print(costs)
    spread = sorted(cell.spread for cell in model.cells)[len(model.cells) // 2]
    console.print(f"\nRepeated measurements of a cell differ by {spread:.0%} (median).", highlight=False)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _modes(model: DeviceModel) -> list[bool]:
    return [True, False] if model.direct else [False]


def _short(nbytes: float) -> str:
    """4096 -> "4K"."""
    return f"{nbytes / 2**20:g}M" if nbytes >= 2**20 else f"{nbytes / 1024:g}K"

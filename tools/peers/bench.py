"""Measure edgellm and llama-bench on the same file, turn by turn in one run.

Each round runs both programs, one after the other, the order changing from round to round; the ratio is taken
within a round, so that a machine that slows down for a while slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgellm.errors import CheckFailed, EdgeError
from tools.peers import build, chart
from tools.peers.programs import output

BUSY = 0.25  # load average per core above which the figures are called doubtful
Measured = dict[str, float]  # test ("pp128", "tg64") -> tokens per second, median of the repetitions


@dataclass
class Series:
    """One test at one number of threads: tokens per second, one entry a round."""

    test: str
    threads: int
    edgellm: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.edgellm, self.peer, strict=True)]

    def summary(self) -> dict[str, object]:
        return {
            "test": self.test,
            "threads": self.threads,
            "edgellm": {"median": statistics.median(self.edgellm), "samples": self.edgellm},
            "peer": {"median": statistics.median(self.peer), "samples": self.peer},
            "ratio": {"median": statistics.median(self.ratios), "samples": self.ratios},
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="GGUF file or name in the catalogue (default: the default model)"
    )
    parser.add_argument("-p", "--prompt", type=int, default=128, help="tokens of the prefill test")
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens of the decode test")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], metavar="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3, help="within each program, each round")
    parser.add_argument(
        "--at-least",
        action="append",
        default=[],
        metavar="[TEST[@THREADS]=]RATIO",
        help="exit 1 if a median ratio is lower, as in tg64=1.2 or tg64@2=1.1 or 1.0",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--svg", type=Path, help="write a bar chart to this file")


def run(options: argparse.Namespace) -> int:
    from edgellm.hub import resolve

    if options.rounds < 1 or options.repetitions < 1 or min(options.threads) < 1:
        raise EdgeError("--rounds, --repetitions and --threads must be at least 1.")
    floors = [parse_floor(text) for text in options.at_least]
    model = resolve(options.model, pull=True)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        print(f"Other programs keep this machine busy (load {load:.1f} on {cores} cores).", file=sys.stderr)
    tests = (options.prompt, options.generate)
    bench = build.program("llama-bench")

    def ours(threads: int) -> Measured:
        return run_edgellm(model, tests, threads, options.repetitions)

    def theirs(threads: int) -> Measured:
        return run_llama_bench(bench, model, tests, threads, options.repetitions)

    series = [s for t in options.threads for s in measure(ours, theirs, t, options.rounds)]
    rows = [s.summary() for s in series]
    if options.json:
        print(
            json.dumps(
                {
                    "model": str(model),
                    "peer": f"llama.cpp of {build.PACKAGE} {build.VERSION}",
                    "cores": cores,
                    "load": load,
                    "results": rows,
                }
            )
        )
    else:
        print(table(series))
    if options.svg:
        options.svg.write_text(chart.bars(f"{model.name}: tokens per second", rows))
    check(series, floors)
    return 0


def measure(
    ours: Callable[[int], Measured], theirs: Callable[[int], Measured], threads: int, rounds: int
) -> list[Series]:
    """Run both `rounds` times, in turn: one Series for each test that both report."""
    found: dict[str, Series] = {}
    for number in range(rounds):
        if number % 2 == 0:
            mine = ours(threads)
            other = theirs(threads)
        else:
            other = theirs(threads)
            mine = ours(threads)
        if mine.keys() != other.keys():
            raise CheckFailed(
                f"edgellm measured {sorted(mine)}, llama-bench {sorted(other)}: not the same tests."
            )
        for test in mine:
            one = found.setdefault(test, Series(test, threads))
            one.edgellm.append(mine[test])
            one.peer.append(other[test])
        done = ", ".join(f"{t} {mine[t]:.1f} : {other[t]:.1f}" for t in mine)
        print(
            f"threads {threads}, round {number + 1} of {rounds}: {done} tokens/s", file=sys.stderr, flush=True
        )
    return list(found.values())


def run_edgellm(model: Path, tests: tuple[int, int], threads: int, repetitions: int) -> Measured:
    command = [sys.executable, "-m", "edgellm", "bench", str(model), "--json"]
    result = json.loads(
        output([*command, *_options(tests), "--threads", str(threads), "--repetitions", str(repetitions)])
    )
    return {r["test"]: float(r["tokens_per_second"]["median"]) for r in result["results"]}


def run_llama_bench(
    program: Path, model: Path, tests: tuple[int, int], threads: int, repetitions: int
) -> Measured:
    command = [str(program), "-m", str(model), "-o", "json", "-t", str(threads), "-r", str(repetitions)]
    return parse_llama_bench(output([*command, *_options(tests)]))


def parse_llama_bench(text: str) -> Measured:
    """Median tokens per second by test, of what `llama-bench -o json` printed."""
    rows = json.loads(text)
    name = {True: "pp{n_prompt}", False: "tg{n_gen}"}
    return {name[r["n_gen"] == 0].format_map(r): statistics.median(r["samples_ts"]) for r in rows}


def table(series: list[Series]) -> str:
    lines = [f"{'test':<8}{'threads':>8}{'edgellm':>12}{'llama.cpp':>12}{'ratio':>8}   pairs"]
    for s in series:
        low, high = min(s.ratios), max(s.ratios)
        ours, theirs = statistics.median(s.edgellm), statistics.median(s.peer)
        ratio = statistics.median(s.ratios)
        lines.append(
            f"{s.test:<8}{s.threads:>8}{ours:>12.1f}{theirs:>12.1f}{ratio:>8.2f}   {low:.2f} to {high:.2f}"
        )
    return "\n".join(lines)


def parse_floor(text: str) -> tuple[str | None, int | None, float]:
    """'tg64@2=1.1' -> ('tg64', 2, 1.1); '1.0' -> (None, None, 1.0). Raises EdgeError."""
    name, _, ratio = text.rpartition("=")
    test, _, threads = name.partition("@")
    try:
        return test or None, int(threads) if threads else None, float(ratio)
    except ValueError:
        raise EdgeError(f"--at-least {text}: write RATIO, TEST=RATIO or TEST@THREADS=RATIO.") from None


def check(series: list[Series], floors: list[tuple[str | None, int | None, float]]) -> None:
    """Raises CheckFailed if a median ratio is below a floor, EdgeError if a floor names no test."""
    missed = []
    for test, threads, floor in floors:
        named = [s for s in series if test in (None, s.test) and threads in (None, s.threads)]
        if not named:
            raise EdgeError(f"--at-least names {test}@{threads}, which was not measured.")
        for s in named:
            ratio = statistics.median(s.ratios)
            if not ratio >= floor:
                missed.append(f"{s.test} with {s.threads} threads is {ratio:.3f} of llama.cpp, not {floor}")
    if missed:
        raise CheckFailed("; ".join(missed) + ".")


def _options(tests: tuple[int, int]) -> list[str]:
    return ["-p", str(tests[0]), "-n", str(tests[1])]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]

"""`edgellm bench --ladder`: what each idea of "LLM in a flash" gains, with the same memory and tokens."""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError

# As in table 2 of the paper, which has a trained predictor where a gate tells here who fires.
RUNGS = {
    "naive": "every weight is read for every token",
    "hybrid": "half stays in memory, the rest of each layer is read",
    "active": "of the rest, only the neurons that fire",
    "window": "what stays is what fires most often",
    "bundle": "a neuron's up and down in one read",
    "merged": "near neighbours in one read",
}


def climb(
    model: str, *, generate: int, repetitions: int, threads: int | None, dram: int | None,
    tokens: Path | None, kv: str, json: bool,
) -> None:  # fmt: skip
    """Measure every rung in a process of its own, and tell what came of it. Raises EdgeError where one fails,
    or finds other tokens than the others."""
    from edgellm.cli.output import note, print_json
    from edgellm.flash.bars import ladder_chart

    if not generate:
        raise EdgeError("The ladder is measured on decoded tokens; give -n a number above 0.")
    rungs: dict[str, dict[str, Any]] = {}
    for name in RUNGS:
        note(f"measuring {name}: {RUNGS[name]}")
        rungs[name] = _measured(
            [model, "-p", "0", "-n", str(generate), "-r", str(repetitions), "--dram", str(dram), "--kv", kv]
            + ["--rung", name, "--json"]
            + (["--threads", str(threads)] if threads else [])
            + (["--tokens", str(tokens)] if tokens else [])
        )
    same = len({tuple(found["likeliest_tokens"]) for found in rungs.values()}) == 1
    path = Path.cwd() / f"{Path(model).stem}-ladder.svg"
    path.write_text(ladder_chart(f"{Path(model).name}, {dram} bytes", rungs), encoding="utf-8")
    report = {
        "model": model, "dram_bytes": dram, "same_tokens": same, "chart": str(path),
        "rungs": {name: {"what": RUNGS[name], **_figures(found)} for name, found in rungs.items()},
    }  # fmt: skip
    if json:
        print_json(report)
    else:
        _print(report)
    if not same:
        raise EdgeError(
            "The rungs did not find the same tokens, which is a fault of edgellm: please report it."
        )


def _measured(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "bench", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EdgeError(
            done.stderr.strip().splitlines()[-1].removeprefix("edgellm: ") if done.stderr else "?"
        )
    found: dict[str, Any] = jsonlib.loads(done.stdout)
    return found


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens_per_second": found["results"][0]["tokens_per_second"],
        "predicted_tokens_per_second": found["predicted_tokens_per_second"],
        "io": found["io"], "latency_ms": found["latency_ms"], "memory": found["memory"],
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    from edgellm.cli.output import size

    print(f"{report['model']} in {size(report['dram_bytes'])}")
    head = [
        "rung",
        "tokens/s",
        "MB/token",
        "requests",
        "hit-rate",
        "p99",
        "I/O-ms",
        "memory",
        "compute",
        "p50",
        "p99",
    ]
    print("".join(f"{name:>10}" for name in head) + f"{'peak':>12}")
    for name, found in report["rungs"].items():
        io, latency = found["io"], found["latency_ms"]
        hits = io["hit_rate"]
        cells = [
            name, f"{found['tokens_per_second']['median']:.2f}", f"{io['bytes_per_token'] / 1e6:.1f}",
            f"{io['requests_per_token']:.0f}", f"{hits['mean']:.1%}", f"{hits['p99']:.1%}",
            *(f"{latency[key]:.1f}" for key in ("io", "memory", "compute", "p50", "p99")),
        ]  # fmt: skip
        print("".join(f"{cell:>10}" for cell in cells) + f"{size(found['memory']['peak_rss_bytes']):>12}")
    print(f"drawn in {report['chart']}")

"""Measure everything that edgellm promises, beside its peers, in one run: a table of figures and bars.

Each round starts every program once, those that are compared right after each other, and the next round in
the opposite order. llama.cpp is measured with flash attention off and on, and counts with the better one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError
from tools.peers import build, chart, genai
from tools.peers.figures import Figure, Samples, check, evaluate, markdown, table
from tools.peers.programs import output, outputs
from tools.peers.rows import ACTIVATIONS, GROUPS, SUBJECTS, Call, Plan, plan

ROUNDS = 5
PAIR_REPETITIONS = 12  # long enough for two processes to run beside each other most of the time
DEEP_REPETITIONS = 3
CPUINFO = Path("/proc/cpuinfo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one round: figures to look at, not to keep")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--only", type=_names, default=list(GROUPS), metavar="GROUP,...", help=", ".join(GROUPS)
    )
    parser.add_argument(
        "--activations", type=_names, default=["16"], metavar="16,8", help="bits of activations in prefill"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a chart to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table for docs/performance.md")
    parser.add_argument(
        "--prefix", default="", metavar="COMMAND", help="start every program with it ('taskset -c 0,1')"
    )


def run(options: argparse.Namespace) -> int:
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    if rounds < 1:
        raise EdgeError("--rounds must be at least 1.")
    for name, known in (("only", GROUPS), ("activations", ACTIVATIONS)):
        if unknown := set(getattr(options, name)) - set(known):
            raise EdgeError(f"--{name} {','.join(sorted(unknown))}: choose from {','.join(known)}.")
    machine = describe_machine()
    warn_if_busy(machine["load"], machine["cores"])
    wanted = plan(options.only, options.activations, machine["amx"])
    runner = Runner({name: SUBJECTS[name].file() for name in _subjects(wanted)}, shlex.split(options.prefix))
    found, missing = measure(wanted, runner, rounds)
    figures = [evaluate(row, found, missing) for row in wanted.rows]
    if options.json:
        _write(options.json, json.dumps(report(machine, rounds, figures), indent=1) + "\n")
    if options.svg:
        _write(options.svg, chart.bars_reached("edgellm: figures and bars", [f.report() for f in figures]))
    if options.markdown:
        _write(options.markdown, markdown(figures))
    print(table(figures))
    if options.check:
        check(figures)
    return 0


def describe_machine() -> dict[str, Any]:
    """What the figures belong to."""
    from edgellm.kernels.simd.level import host_target

    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": name.group(1) if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "simd": host_target().level,
        "amx": "amx_int8" in build.cpu_flags(cpuinfo),
        "load": os.getloadavg()[0],
    }


def warn_if_busy(load: float, cores: int) -> None:
    from tools.peers.bench import BUSY

    if load > BUSY * cores:
        print(f"Other programs keep this machine busy (load {load:.1f} on {cores} cores).", file=sys.stderr)


def report(machine: Mapping[str, Any], rounds: int, figures: list[Figure]) -> dict[str, Any]:
    """The JSON object."""
    return {
        "machine": machine,
        "peers": {"llama.cpp": f"{build.PACKAGE} {build.VERSION}", "openvino": genai.PACKAGES[0]},
        "rounds": rounds,
        "rows": [f.report() for f in figures],
    }


def measure(wanted: Plan, runner: Runner, rounds: int) -> tuple[dict[Call, Samples], dict[Call, str]]:
    """Make every call once a round: (samples, why a call could not be made).

    Only OpenVINO may be missing; whatever else fails raises EdgeError.
    """
    found: dict[Call, Samples] = {call: {} for call in wanted.calls}
    missing: dict[Call, str] = {}
    runner.prepare()
    for number in range(rounds):
        for call in wanted.calls if number % 2 == 0 else wanted.calls[::-1]:
            if call in missing:
                continue
            try:
                figures = runner(call)
            except EdgeError as error:
                if call.program != "openvino":
                    raise
                missing[call] = str(error)
                continue
            for test, figure in figures.items():
                found[call].setdefault(test, []).append(figure)
            told = ", ".join(f"{test} {figure:.1f}" for test, figure in figures.items())
            where = f"round {number + 1} of {rounds}: {call.program}, {call.subject}, {call.threads} threads"
            print(f"{where}: {told}", file=sys.stderr, flush=True)
    return found, missing


@dataclass(frozen=True)
class Runner:
    """Starts programs. files: of the subjects, by name; prefix: what every command line begins with."""

    files: Mapping[str, Path]
    prefix: list[str]

    def prepare(self) -> None:
        """Compile edgellm's kernels and read the files once, which belongs to no measurement."""
        for name, file in self.files.items():
            print(f"preparing {name}", file=sys.stderr, flush=True)
            output([*_edgellm(file), "-p", "16", "-n", "4", "--sequences", "2", "--repetitions", "1"])

    def __call__(self, call: Call) -> dict[str, float]:
        """Figures by name: tests in tokens per second, the median of a call's repetitions."""
        start = {
            "edgellm": self.edgellm, "llama.cpp": self.llama, "openvino": self.openvino, "pair": self.pair,
        }  # fmt: skip
        return start[call.program](call)

    def edgellm(self, call: Call) -> dict[str, float]:
        command = self._command(call, self._repetitions(call))
        return parse_edgellm(output(command, environment=dict(call.environment)))

    def pair(self, call: Call) -> dict[str, float]:
        command = self._command(call, PAIR_REPETITIONS)
        both = [parse_edgellm(text) for text in outputs([command, command])]
        return {test: min(one[test] for one in both) for test in both[0] if test.startswith("tg")}

    def llama(self, call: Call) -> dict[str, float]:
        command = [
            *self.prefix, str(build.program("llama-bench")), "-m", str(self.files[call.subject]),
            *call.options, "-fa", "0,1", "-t", str(call.threads), "-r", str(self._repetitions(call)),
            "-o", "json",
        ]  # fmt: skip
        return parse_llama(output(command))

    def openvino(self, call: Call) -> dict[str, float]:
        command = genai.command(
            genai.python(), self.files[call.subject], call.threads, self._repetitions(call)
        )
        found = genai.parse(output([*self.prefix, *command]))
        return {test: statistics.median(samples) for test, samples in found.items()}

    def _repetitions(self, call: Call) -> int:
        deep = {"-d", "--depth"} & set(call.options)
        return DEEP_REPETITIONS if deep else SUBJECTS[call.subject].repetitions

    def _command(self, call: Call, repetitions: int) -> list[str]:
        started = [*self.prefix, *_edgellm(self.files[call.subject]), *call.options]
        return [*started, "--threads", str(call.threads), "--repetitions", str(repetitions)]


def _edgellm(file: Path) -> list[str]:
    return [sys.executable, "-m", "edgellm", "bench", str(file), "--json"]


def parse_edgellm(text: str) -> dict[str, float]:
    """Figures of what `edgellm bench --json` printed."""
    found = json.loads(text)
    figures = {r["test"]: float(r["tokens_per_second"]["median"]) for r in found["results"]}
    memory, bandwidth = found["memory"], found["bandwidth"]
    held = memory["weights_bytes"] + (memory["kv_bytes"] or 0)
    figures["peak RSS beyond weights and KV"] = (memory["peak_rss_bytes"] - held) / 1e6
    if bandwidth["achieved_bytes_per_second"] is not None:
        share = bandwidth["achieved_bytes_per_second"] / bandwidth["stream_bytes_per_second"]
        figures["share of stream bandwidth"] = 100 * share
    return figures


def parse_llama(text: str) -> dict[str, float]:
    """Figures of what `llama-bench -o json` printed, with flash attention in the name: "tg64 fa=1"."""
    name = {True: "pp{n_prompt} fa={flash_attn}", False: "tg{n_gen} fa={flash_attn}"}
    return {
        name[r["n_gen"] == 0].format_map({**r, "flash_attn": int(r["flash_attn"])}): statistics.median(
            r["samples_ts"]
        )
        for r in json.loads(text)
    }


def _subjects(wanted: Plan) -> list[str]:
    return list(dict.fromkeys(call.subject for call in wanted.calls))


def _names(text: str) -> list[str]:
    return text.split(",")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise EdgeError(f"{path} could not be written: {error.strerror}.") from None

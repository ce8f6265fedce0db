"""Compare edgellm's perplexity with llama-perplexity's, on the same text and the same files.

Each quantisation is made once from the given model with `llama-quantize --allow-requantize`; both programs
then read the same file. Requantising costs quality, the same for both: the figures do not rank the types.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from edgellm.errors import CheckFailed, EdgeError
from tools.peers import build
from tools.peers.models import quantise
from tools.peers.programs import output

TEXT = Path(__file__).parents[2] / "tests" / "data" / "alice.txt"
TOLERANCE = 0.005  # relative


@dataclass
class Result:
    """Perplexity of one file by both programs, over `chunks` chunks."""

    quantisation: str
    edgellm: float
    peer: float
    chunks: int

    @property
    def difference(self) -> float:
        """Relative to the peer, signed."""
        return self.edgellm / self.peer - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="GGUF file or name in the catalogue (default: the default model)"
    )
    parser.add_argument(
        "--types", default="Q4_0,Q8_0,Q4_K_M,Q6_K", help="quantisations; 'asis' is the file itself"
    )
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--bytes", type=int, help="read only this much of the text")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="keep the requantised files in this folder and use them again"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from edgellm.hub import resolve

    if not options.text.is_file():
        raise EdgeError(f"{options.text}: no such text.")
    model = resolve(options.model, pull=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        text = options.text
        if options.bytes:
            text = Path(scratch) / "text.txt"
            text.write_bytes(options.text.read_bytes()[: options.bytes])
        results = []
        for name in options.types.split(","):
            file = quantise(model, name, work)
            results.append(compare(name, file, text, options.ctx, options.threads))
            if not options.json:
                print(line(results[-1]), flush=True)
    if options.json:
        rows = [{**asdict(r), "difference": r.difference} for r in results]
        print(
            json.dumps({"model": str(model), "text": str(options.text), "ctx": options.ctx, "results": rows})
        )
    check(results)
    return 0


def compare(name: str, file: Path, text: Path, ctx: int, threads: int) -> Result:
    """Both programs over the same text. Raises CheckFailed if they did not score the same chunks."""
    sized = [str(ctx), str(threads)]
    print(f"{name}: llama-perplexity ...", file=sys.stderr, flush=True)
    peer = [
        str(build.program("llama-perplexity")),
        "-m",
        str(file),
        "-f",
        str(text),
        "-c",
        sized[0],
        "-t",
        sized[1],
    ]
    theirs, chunks = parse_llama_perplexity(output(peer, merged=True))
    print(f"{name}: edgellm perplexity ...", file=sys.stderr, flush=True)
    ours = [sys.executable, "-m", "edgellm", "perplexity", str(file), str(text), "--json"]
    found = json.loads(output([*ours, "--ctx", sized[0], "--threads", sized[1]]))
    if found["chunks"] != chunks:
        raise CheckFailed(f"{file.name}: edgellm scored {found['chunks']} chunks, llama-perplexity {chunks}.")
    return Result(name, float(found["perplexity"]), theirs, chunks)


def parse_llama_perplexity(output: str) -> tuple[float, int]:
    """(perplexity, chunks) of what llama-perplexity printed. Raises EdgeError."""
    estimate = re.search(r"Final estimate: PPL = ([0-9.]+)", output)
    chunks = re.search(r"calculating perplexity over (\d+) chunks", output)
    if not estimate or not chunks:
        raise EdgeError("llama-perplexity printed no final estimate.")
    return float(estimate.group(1)), int(chunks.group(1))


def line(result: Result) -> str:
    return (
        f"{result.quantisation:<8} edgellm {result.edgellm:8.4f}   llama.cpp {result.peer:8.4f}   "
        f"difference {result.difference:+.3%}   {result.chunks} chunks"
    )


def check(results: list[Result]) -> None:
    """Raises CheckFailed for a difference above TOLERANCE."""
    bad = [r for r in results if not abs(r.difference) <= TOLERANCE]
    if bad:
        found = ", ".join(f"{r.quantisation} {r.difference:+.2%}" for r in bad)
        raise CheckFailed(f"Perplexity differs from llama.cpp's by more than {TOLERANCE:.1%}: {found}.")

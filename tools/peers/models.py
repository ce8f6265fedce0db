"""The model files that the comparison runs, made once and kept in `peers/models` of the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm.hub.paths import cache_root
from tools.peers import build
from tools.peers.programs import output


@dataclass(frozen=True)
class Subject:
    """A model that is measured. repetitions: of each test within a program; a large model needs fewer."""

    name: str
    file: Callable[[], Path]
    repetitions: int


def folder() -> Path:
    return cache_root() / "peers" / "models"


def quantise(model: Path, name: str, work: Path) -> Path:
    """`model` requantised to the type `name`, or `model` itself for "asis"."""
    if name == "asis":
        return model
    made = work / f"{model.stem}.to-{name}.gguf"
    if not made.exists():
        work.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(".part")
        command = [str(build.program("llama-quantize")), "--allow-requantize", str(model), str(part), name]
        output(command, merged=True)
        part.rename(made)
    return made


def random_model(shape: str, type_name: str, outer: str | None = None) -> Path:
    """A model with random weights, see tools.random_model."""
    from tools.random_model.shapes import SHAPES
    from tools.random_model.write import write

    made = folder() / f"random-{shape}-{type_name}{f'-{outer}' if outer else ''}.gguf"
    if not made.exists():
        print(f"making {made.name}", file=sys.stderr, flush=True)
        write(made, SHAPES[shape], type_name, outer=outer, name=f"random {shape}")
    return made


def smollm2(name: str) -> Path:
    """SmolLM2-135M-Instruct, as pulled ("asis") or requantised."""
    from edgellm.hub import resolve

    return quantise(resolve(pull=True), name, folder())


SMALL = Subject("SmolLM2-135M Q4_0", lambda: smollm2("Q4_0"), 5)
SMALL_Q4_1 = Subject("SmolLM2-135M Q4_1", lambda: smollm2("asis"), 5)
LARGE = Subject("random 1.1B Q4_0", lambda: random_model("llama-1.1b", "Q4_0"), 1)
# TeLLMe's shape. The embedding, which is also the output matrix, in 8 bits for both programs.
TQ1_0 = Subject("random 0.7B TQ1_0", lambda: random_model("bitnet-0.7b", "TQ1_0", "Q8_0"), 2)
TQ2_0 = Subject("random 0.7B TQ2_0", lambda: random_model("bitnet-0.7b", "TQ2_0", "Q8_0"), 2)

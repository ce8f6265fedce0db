"""The options that several commands share, declared once."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from edgellm.cli.sizes import parse_size, parse_window


class ExecutorName(str, Enum):
    """Who runs the Program."""

    native = "native"
    reference = "reference"


class ActivationsName(str, Enum):
    """What the inputs of quantised weights are rounded to."""

    int16 = "int16"
    int8 = "int8"


class KvName(str, Enum):
    """What the KV cache holds numbers in."""

    fp16 = "fp16"
    int8 = "int8"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A catalogue name, a .gguf file, a Hugging Face folder or a bundle (.edge)."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, help="Threads [default: the physical cores available]."),
]
Ctx = Annotated[
    int | None,
    typer.Option("--ctx", "-c", min=1, help="Tokens of context [default: the model's, at most 8192]."),
]
Executor = Annotated[ExecutorName, typer.Option("--executor", help="Who runs the model.")]
Kv = Annotated[
    KvName,
    typer.Option("--kv", help="Keep keys and values in float16, or in int8: half the memory, rounded."),
]
Activations = Annotated[
    ActivationsName,
    typer.Option(
        "--activations",
        help="Round the inputs of quantised weights to 16 bits, or to 8: faster prefill, less exact.",
    ),
]
Dram = Annotated[
    int | None,
    typer.Option(
        "--dram", parser=parse_size, metavar="SIZE",
        help="Memory that the whole process may take, as 512MiB or 2GiB; weights that do not fit are read "
        "from flash for every token.",
    ),
]  # fmt: skip
Window = Annotated[
    int | None,
    typer.Option(
        "--window", parser=parse_window, metavar="TOKENS",
        help="Of a bundle, keep in memory the neurons that fired for the last TOKENS tokens; auto: for as "
        "many as there is room for [default: those that fire most often].",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell on standard error which paths were taken, and timings.")
]

MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Generate at most so many tokens.")]
Temperature = Annotated[
    float, typer.Option("--temp", min=0.0, help="Sampling temperature; 0 always takes the likeliest token.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", "-s", min=0, help="Seed of the sampling [default: a random one].")
]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Sample among the K likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Sample among the likeliest tokens that make up P.")
]
MinP = Annotated[
    float,
    typer.Option("--min-p", min=0.0, max=1.0, help="Drop tokens less likely than P times the likeliest."),
]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", help="Divide the logits of recent tokens by this; 1: off.")
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", help="Subtract this from the logits of tokens seen; 0: off.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=BIAS", help="Add BIAS to the logit of token ID; repeatable."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text; repeatable."),
]
System = Annotated[str | None, typer.Option("--system", help="System message of the chat template.")]

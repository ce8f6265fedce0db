"""`python -m tools.train FOLDER`: the tiny ternary model, from nothing to a GGUF file and its card.

Stories are written by SmolLM2, books come from the package registries, a tokenizer is made of both, the
ternary model and a float one of the same size are trained the same way, and the ternary one is converted.
Every stage keeps its result in FOLDER, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgellm.errors import EdgeError

STAGES = ("stories", "texts", "ternary", "float", "export")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="for everything that is made")
    parser.add_argument("--only", choices=STAGES, action="append", help="a stage; may be repeated")
    parser.add_argument("--stories", type=int, default=9000, metavar="N", help="to ask SmolLM2 for")
    parser.add_argument("--sequences", type=int, default=64, metavar="N", help="stories written at once")
    parser.add_argument("--steps", type=int, default=1800, metavar="N", help="of training")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if min(options.stories, options.sequences, options.steps) < 1 or options.seed < 0:
        parser.error("numbers must be positive")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for stage in options.only or STAGES:
            _run(stage, options)
    except EdgeError as error:
        print(f"tools.train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _run(stage: str, options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if stage == "stories":
        from tools.train.stories import write_stories

        path = folder / "stories.jsonl"
        for asked, speed in write_stories(
            path, options.stories, seed=options.seed, sequences=options.sequences
        ):
            _say(f"stories: {asked} of {options.stories}, {speed:.0f} tokens/s")
    elif stage == "texts":
        from tools.train.texts import fetch

        found = fetch(folder / "texts")
        _say(f"texts: {len(found)} books, {sum(len(one.text) for one in found) / 1e6:.1f} MB")
    elif stage == "export":
        from tools.train.export import export

        _say(f"export: {export(folder, options.seed)}")
    else:
        from tools.train.forms import train_form

        train_form(folder, stage, steps=options.steps, seed=options.seed, report=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

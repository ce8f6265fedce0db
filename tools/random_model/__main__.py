"""`python -m tools.random_model SHAPE --type Q4_0 -o FILE`: a GGUF model with random weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgellm.errors import EdgeError
from tools.random_model.shapes import SHAPES
from tools.random_model.write import TYPES, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.random_model", description=__doc__)
    parser.add_argument("shape", choices=SHAPES, help="whose shape")
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the matrices (default: Q4_0)")
    parser.add_argument(
        "--outer", choices=TYPES, help="of embeddings and output (default: as --type; F16 for TQ)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must not be negative")
    try:
        size = write(
            options.output, SHAPES[options.shape], options.type, outer=options.outer,
            seed=options.seed, name=f"random {options.shape}", progress=show_progress,
        )  # fmt: skip
    except EdgeError as error:
        print(f"tools.random_model: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"{options.output}: {size / 1e6:.1f} MB")
    return 0


def show_progress(done: int, total: int) -> None:
    """A line on a terminal; elsewhere silence, it takes a minute at most."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

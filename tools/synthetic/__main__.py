"""`python -m tools.synthetic SHAPE -o FILE`: a GGUF model with random weights and ReLU FFNs, whose neurons
fire as rarely, as unevenly and as often anew as those of published models. Prints what they really do.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.hub.progress import byte_bar
from tools.synthetic.figures import table
from tools.synthetic.law import LEAST, MOST
from tools.synthetic.sample import FRESH, MEASURED, SETTING, fresh_tokens
from tools.synthetic.shapes import SHAPES
from tools.synthetic.write import Written, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic", description=__doc__)
    parser.add_argument("shape", choices=SHAPES, help="whose shape")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--active", type=float, default=0.10, metavar="SHARE",
        help="of the neurons, which fires for a token on average (default: 0.10)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE",
        help=f"also write {FRESH} token ids, drawn in the same way as those that are measured, as JSON",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if not LEAST <= options.active <= MOST:
        parser.error(f"--active must be between {LEAST} and {MOST}")
    try:
        with byte_bar(options.output.name, show=True) as advance:
            written = write(
                options.output, SHAPES[options.shape], name=options.shape, seed=options.seed,
                active=options.active, progress=advance,
            )  # fmt: skip
        if options.tokens is not None:
            ids = fresh_tokens(SHAPES[options.shape].vocab, options.seed)
            options.tokens.write_text(json.dumps(ids.tolist()), encoding="utf-8")
    except OSError as error:
        print(f"tools.synthetic: {options.tokens}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except EdgeError as error:
        print(f"tools.synthetic: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(_json(written, options) if options.json else _text(written, options))
    return 0


def _text(written: Written, options: argparse.Namespace) -> str:
    lines = (
        f"{options.output}: {written.size / 1e6:.1f} MB, synthetic {options.shape}, seed {options.seed}",
        f"A synthetic model, of whose FFN neurons {100 * options.active:g} % shall fire. What they do for",
        f"{MEASURED} tokens drawn by Zipf's law, behind {SETTING} others that set the biases:",
        "",
        table(written.model, written.layers),
    )
    return "\n".join(lines)


def _json(written: Written, options: argparse.Namespace) -> str:
    found = {
        "synthetic": options.shape,
        "file": str(options.output),
        "seed": options.seed,
        "asked_active": options.active,
        "tokens": MEASURED,
        **asdict(written),
    }
    return json.dumps(found, indent=2)


if __name__ == "__main__":
    sys.exit(main())

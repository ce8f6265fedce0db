"""`python -m tools.peers build|bench|matrix|perplexity`: llama.cpp, built here, beside edgellm."""

from __future__ import annotations

import argparse
import sys

from edgellm.errors import EdgeError
from tools.peers import bench, build, matrix, perplexity


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (build, bench, matrix, perplexity):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=(module.__doc__ or "").partition("\n")[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except EdgeError as error:
        print(f"tools.peers: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

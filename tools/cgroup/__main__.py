"""`python -m tools.cgroup --memory SIZE -- COMMAND`: run a command as on a machine with so much memory.

It runs in a memory cgroup, which takes root; page cache counts, swap is off. The peak is told at the end, and
the exit status is the command's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from edgellm.cli.sizes import parse_size
from edgellm.errors import EdgeError
from tools.cgroup.group import drop_caches, run_limited


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cgroup", description=__doc__)
    parser.add_argument("--memory", required=True, metavar="SIZE", help="limit, as 512MiB or 2GiB")
    parser.add_argument("--drop-caches", action="store_true", help="begin with an empty page cache")
    parser.add_argument("--json", action="store_true", help="tell the outcome as JSON on standard error")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, after --")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("a command is missing")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the group is removed then, too
    try:
        limit = parse_size(options.memory)
        if options.drop_caches:
            drop_caches()
        outcome = run_limited(command, limit)
    except EdgeError as error:
        print(f"tools.cgroup: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(vars(outcome)), file=sys.stderr)
    else:
        killed = ", killed for want of memory" if outcome.killed else ""
        print(
            f"peak {outcome.peak / 2**20:.1f} of {limit / 2**20:.1f} MiB, limit reached {outcome.hits} times"
            f"{killed}",
            file=sys.stderr,
        )
    return outcome.status if outcome.status >= 0 else 128 - outcome.status


if __name__ == "__main__":
    sys.exit(main())

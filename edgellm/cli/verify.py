"""`edgellm verify`: is a bundle what was packed?"""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli import options


def verify(
    bundle: Annotated[str, typer.Argument(metavar="MODEL.edge", help="A bundle, or the name of one.")],
    json: options.Json = False,
) -> None:
    """Compare every file of a bundle with its checksum, and every neuron in it.

    Exits with 1 and lists what is wrong if the bundle is not what was packed.

    \b
    Examples:
      edgellm verify model.edge
    """
    from edgellm.cli.output import print_json
    from edgellm.formats.edge_verify import verify as check
    from edgellm.hub import resolve
    from edgellm.hub.progress import byte_bar

    path = resolve(bundle)
    with byte_bar(path.name, show=True) as advance:
        problems = check(path, advance)
    if json:
        print_json({"path": str(path), "whole": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            print(f"{path}: {problem}")
    else:
        print(f"{path}: whole")
    if problems:
        raise typer.Exit(1)

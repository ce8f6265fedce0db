"""`edgellm rm`: delete a pulled model."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli.options import Json
from edgellm.cli.output import print_json, size

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name that `edgellm list` shows as pulled or partial.")
]


def rm(name: Name, as_json: Json = False) -> None:
    """Delete a pulled model, or what an interrupted pull left, from the cache.

    Nothing outside the cache is ever deleted.

    \b
    Example:
      edgellm rm smollm2
    """
    from edgellm.hub.registry import read_record, remove

    record = read_record(name.lower())
    removed, freed = remove(name)
    if as_json:
        print_json(
            {
                "name": removed,
                "path": str(record.path) if record else None,
                "sha256": record.sha256 if record else None,
                "bytes": freed,
            }
        )
    else:
        print(f"Removed {removed}: {size(freed)} freed.")

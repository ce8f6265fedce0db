"""Write the help text of every command into docs/cli.md, so that the page cannot drift from the program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgellm.cli.app import COMMANDS, command_group

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
BEGIN = "<!-- Below this line: written by `make docs`. -->"
WIDTH = 100


def help_texts() -> str:
    """One Markdown section a command, with its help at WIDTH columns whatever the terminal's width."""
    group = command_group()
    sections = [_section("edgellm", group, None)]
    root = group.make_context("edgellm", [], resilient_parsing=True)
    for name in COMMANDS:
        command = group.commands[name]
        sections.append(_section(f"edgellm {name}", command, root))
        inner = command.make_context(name, [], root, resilient_parsing=True)
        for part, below in getattr(command, "commands", {}).items():  # of a group such as `edgellm flash`
            sections.append(_section(f"edgellm {name} {part}", below, inner))
    return "\n".join(sections)


def page(current: str) -> str:
    """The page `current` with everything below BEGIN replaced."""
    above, mark, _ = current.partition(BEGIN)
    if not mark:
        raise SystemExit(f"{PAGE}: the line '{BEGIN}' is missing.")
    return f"{above}{BEGIN}\n\n{help_texts()}"


def _section(title: str, command: Any, parent: Any) -> str:
    context = command.make_context(
        title.rpartition(" ")[2],
        [],
        parent,
        resilient_parsing=True,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
    )
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"## {title}\n\n```text\n{text}\n```\n"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

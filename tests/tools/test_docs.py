from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.docs import cli_help

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("tests/**/README.md"))]


def test_the_help_texts_in_the_docs_are_those_of_the_program():
    current = cli_help.PAGE.read_text()
    assert cli_help.page(current) == current, "docs/cli.md has drifted: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_every_decision_is_listed():
    listed = (ROOT / "docs/decisions/README.md").read_text()
    missing = [p.name for p in ROOT.glob("docs/decisions/[0-9]*.md") if f"({p.name})" not in listed]
    assert not missing

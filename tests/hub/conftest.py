"""An empty cache per test, and a web server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.hub import fetch_url
from tests.hub.webserver import Server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGELLM_CACHE points to a folder of this test's own; retries do not wait."""
    root = tmp_path / "cache"
    monkeypatch.setenv("EDGELLM_CACHE", str(root))
    monkeypatch.setattr(fetch_url, "BACKOFF_S", 0.0)
    return root


@pytest.fixture
def server() -> Iterator[Server]:
    site = Server()
    yield site
    site.close()

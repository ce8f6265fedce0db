"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgellm.errors import EdgeError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Path of the default model (SmolLM2-135M-Instruct, Q4_1), pulled once into the ordinary cache.

    Without it a test is skipped, but not in CI: there it fails, so that a green run has run the model.
    """
    from edgellm.hub import resolve

    try:
        return resolve(pull=True)
    except EdgeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no default model: {error}")


@pytest.fixture(scope="session")
def shipped() -> Path:
    """Path of the ternary model that comes with edgellm: needs no network."""
    from edgellm.hub import resolve

    return resolve("tiny")


@pytest.fixture(autouse=True)
def no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of tests, most of them gone in a moment, leave no packed weights in the cache."""
    monkeypatch.setenv("EDGELLM_PACKED", "off")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache root of the test's own, for this process and those that it starts."""
    root = tmp_path / "cache"
    monkeypatch.setenv("EDGELLM_CACHE", str(root))
    return root

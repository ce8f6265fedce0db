"""Sizes on the command line."""

from __future__ import annotations

import pytest

from edgellm.cli.sizes import parse_size
from edgellm.errors import EdgeError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("512MiB", 536870912), ("2GiB", 2147483648), ("2GB", 2000000000), ("1.5 GiB", 1610612736),
        ("4096", 4096), ("300M", 314572800), ("7kb", 7000),
    ],
)  # fmt: skip
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "2 parsecs", "-1GiB", "0", "0.0MiB", "1e9", "2GiB2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(EdgeError, match="is not a size; write it as 512MiB, 2GiB or 2GB"):
        parse_size(text)

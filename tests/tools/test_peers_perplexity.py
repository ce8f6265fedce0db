from __future__ import annotations

import math

import pytest

from edgellm.errors import CheckFailed, EdgeError
from tools.peers import perplexity
from tools.peers.perplexity import Result

# What llama-perplexity prints, shortened.
OUTPUT = """0.00.985.144 I perplexity: calculating perplexity over 2 chunks, n_ctx=512, n_seq=4
[1]24.0198,[2]26.0636,
0.04.240.333 I Final estimate: PPL = 26.0636 +/- 3.05647
"""


def test_the_final_estimate_and_the_chunks_are_read():
    assert perplexity.parse_llama_perplexity(OUTPUT) == (26.0636, 2)


def test_output_without_an_estimate_is_refused():
    with pytest.raises(EdgeError, match="no final estimate"):
        perplexity.parse_llama_perplexity("error: failed to open")


@pytest.mark.parametrize("ours", [20.11, 19.89, math.nan])
def test_a_difference_above_half_a_percent_fails(ours):
    with pytest.raises(CheckFailed, match="Q4_0"):
        perplexity.check([Result("Q8_0", 20.0, 20.0, 8), Result("Q4_0", ours, 20.0, 8)])


def test_a_smaller_difference_passes():
    perplexity.check([Result("Q8_0", 20.09, 20.0, 8), Result("Q4_0", 19.91, 20.0, 8)])


def test_the_text_is_the_one_that_its_readme_describes():
    import hashlib

    readme = (perplexity.TEXT.parent / "README.md").read_text()
    assert hashlib.sha256(perplexity.TEXT.read_bytes()).hexdigest() in readme

"""The accelerator's beats: bit by bit against the description, and back again for every size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.ternary import beats

SHAPE_1536 = (19, 308, 96)  # TeLLMe's own count of blocks and beats for a matrix of 1536 x 1536


def bit_field(beat: np.ndarray, first: int, bits: int) -> int:
    return int.from_bytes(beat.tobytes(), "little") >> first & ((1 << bits) - 1)


def test_shape_is_that_of_the_published_accelerator() -> None:
    assert beats.beats_shape(1536, 1536) == SHAPE_1536
    assert beats.INPUTS * 19 == 1596
    assert -(-4096 // beats.INPUTS) * beats.INPUTS == 4116


def test_every_field_is_where_the_description_says() -> None:
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (7, 100), dtype=np.int8)
    extra = np.array([1.5, -2.0, 0.25], np.float16)
    found = beats.to_beats(trits, extra)
    assert found.shape == (2, 2, 96)
    padded = np.zeros((10, 168), int)
    padded[:7, :100] = trits
    for block in range(2):
        for rows in range(2):
            beat = found[block, rows]
            for r in range(5):
                for j in range(28):
                    at = 84 * block + 3 * j
                    value = int(padded[5 * rows + r, at : at + 3] @ [1, 3, 9])
                    expected = value if value >= 0 else 13 - value
                    assert bit_field(beat, 140 * r + 5 * j, 5) == expected
            number = 2 * block + rows
            half = int(extra[number : number + 1].view(np.uint16)[0]) if number < 3 else 0
            assert bit_field(beat, 700, 16) == half
            assert bit_field(beat, 716, 52) == 0


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 200), st.integers(0, 99))
def test_beats_come_back(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (n, k), dtype=np.int8)
    blocks, groups, _ = beats.beats_shape(n, k)
    extra = rng.standard_normal(blocks * groups).astype(np.float16)
    found = beats.to_beats(trits, extra)
    np.testing.assert_array_equal(beats.from_beats(found, n, k), trits)
    np.testing.assert_array_equal(beats.extra_of(found, len(extra)), extra)
    assert beats.ports(found).shape == (3, blocks, groups, 32)
    np.testing.assert_array_equal(np.concatenate(list(beats.ports(found)), axis=-1), found)


def test_beats_of_another_matrix_are_refused() -> None:
    trits = np.ones((6, 90), np.int8)
    found = beats.to_beats(trits)
    with pytest.raises(ValueError, match="shape"):
        beats.from_beats(found, 6, 84)
    with pytest.raises(ValueError, match="must be 0"):
        beats.from_beats(found, 6, 89)
    with pytest.raises(ValueError, match="must be 0"):
        beats.from_beats(beats.to_beats(np.ones((7, 90), np.int8)), 6, 90)
    with pytest.raises(ValueError, match="no room"):
        beats.to_beats(trits, np.zeros(5, np.float16))
    found[0, 0, 0] |= 31
    with pytest.raises(ValueError, match="below 27"):
        beats.from_beats(found, 6, 90)

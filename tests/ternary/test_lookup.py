"""Matmul by table lookup, in NumPy and in Numba, against the plain integer product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.ternary import encode, lookup, reference


def exact(x: np.ndarray, trits: np.ndarray) -> np.ndarray:
    return x.astype(np.int64) @ trits.T.astype(np.int64)


def every_way(x: np.ndarray, trits: np.ndarray, g: int) -> list[np.ndarray]:
    codes = encode.full_codes(encode.group_values(trits, g), g)
    return [
        reference.matmul(x, trits, g),
        reference.matmul(x, trits, g, half=True),
        lookup.lookup_matmul(x, codes, g),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4),
    st.integers(1, 9),
    st.integers(1, 50),
    st.sampled_from(encode.GROUPS),
    st.integers(0, 99),
)
def test_lookups_are_the_product(tokens: int, n: int, k: int, g: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (tokens, k), dtype=np.int8)
    trits = rng.integers(-1, 2, (n, k), dtype=np.int8)
    for found in every_way(x, trits, g):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, exact(x, trits))


@pytest.mark.parametrize("g", encode.GROUPS)
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("trit", [-1, 1])
def test_the_largest_sums_do_not_wrap(g: int, value: int, trit: int) -> None:
    k = 4099  # no multiple of any group
    x, trits = np.full((1, k), value, np.int8), np.full((2, k), trit, np.int8)
    for found in every_way(x, trits, g):
        np.testing.assert_array_equal(found, [[k * value * trit] * 2])


def test_tables_hold_the_sums_of_their_group() -> None:
    sums = reference.group_tables(np.array([[100, 7, -3, 1]], np.int8), 3)
    assert sums.shape == (1, 2, 27)
    # the code of (1, -1, 1) is 2 + 0 + 18; the second group has one activation and two zeros
    assert sums[0, 0, 20] == 100 - 7 - 3
    np.testing.assert_array_equal(sums[0, 1], np.tile([-1, 0, 1], 9))


def test_weights_of_another_size_are_refused() -> None:
    x, codes = np.zeros((1, 6), np.int8), np.zeros((2, 3), np.uint8)
    for call in (
        lambda: reference.lookup_matmul(x, codes, 3),
        lambda: reference.half_lookup_matmul(x, codes, codes > 0, 3),
        lambda: lookup.lookup_matmul(x, codes, 3),
        lambda: lookup.lookup_matmul(x, np.full((1, 2), 27, np.uint8), 3),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()

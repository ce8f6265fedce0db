"""Encodings of trits: hand-computed values, exact round trips for every size, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.ternary import encode

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 40))


def random_trits(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape, dtype=np.int8)


def test_ternarize_rounds_by_the_mean_magnitude() -> None:
    weights = np.array([[0.4, -0.1, 1.0], [-0.6, 0.3, 0.0]], np.float32)  # mean |w| = 0.4
    trits, scale = encode.ternarize(weights)
    assert scale == pytest.approx(0.4)
    np.testing.assert_array_equal(trits, [[1, 0, 1], [-1, 1, 0]])  # 0.3 / 0.4 rounds to 1, 0.1 / 0.4 to 0


def test_ternarize_of_nothing_but_zeros_and_of_no_numbers() -> None:
    trits, scale = encode.ternarize(np.zeros((2, 3), np.float32))
    assert not trits.any()
    assert scale == 0
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            encode.ternarize(np.array([[1.0, bad]]))


def test_codes_of_a_group_by_hand() -> None:
    trits = np.array([[1, -1, 0, 0, 1, -1]], np.int8)
    values = encode.group_values(trits, 3)
    np.testing.assert_array_equal(values, [[1 - 3, 3 - 9]])
    np.testing.assert_array_equal(encode.full_codes(values, 3), [[13 - 2, 13 - 6]])
    np.testing.assert_array_equal(encode.half_codes(values)[0], [[2, 6]])
    np.testing.assert_array_equal(encode.half_codes(values)[1], [[True, True]])
    np.testing.assert_array_equal(encode.signed_codes(values, 3), [[13 + 2, 13 + 6]])


@pytest.mark.parametrize("g", encode.GROUPS)
def test_tables_list_every_group_once(g: int) -> None:
    every = encode.tables(g)
    assert len({tuple(row) for row in every}) == 3**g
    np.testing.assert_array_equal(encode.full_codes(encode.group_values(every, g), g)[:, 0], np.arange(3**g))
    values = encode.group_values(every, g)[:, 0]
    half = (3**g - 1) // 2
    np.testing.assert_array_equal(values, np.arange(-half, half + 1))
    assert sorted(encode.signed_codes(values[None], g)[0]) == list(range(3**g))


@given(SIZES, st.sampled_from(encode.GROUPS), st.integers(0, 99))
def test_every_code_of_groups_comes_back(size: tuple[int, int], g: int, seed: int) -> None:
    trits = random_trits(size, seed)
    values = encode.group_values(trits, g)
    for again in (
        encode.from_full_codes(encode.full_codes(values, g), g),
        encode.from_half_codes(*encode.half_codes(values)),
        encode.from_signed_codes(encode.signed_codes(values, g), g),
    ):
        np.testing.assert_array_equal(encode.from_group_values(again, g, size[1]), trits)


@given(SIZES, st.integers(0, 99))
def test_every_packing_comes_back(size: tuple[int, int], seed: int) -> None:
    trits = random_trits(size, seed)
    n, k = size
    base3, two = encode.pack_base3(trits), encode.pack_two_bits(trits)
    assert (base3.shape, two.shape) == ((n, -(-k // 5)), (n, -(-k // 4)))
    np.testing.assert_array_equal(encode.unpack_base3(base3, k), trits)
    np.testing.assert_array_equal(encode.unpack_two_bits(two, k), trits)
    codes = encode.signed_codes(encode.group_values(trits, 3), 3)
    five = encode.pack_bits(codes, 5)
    assert five.shape == (n, -(-codes.shape[1] * 5 // 8))
    np.testing.assert_array_equal(encode.unpack_bits(five, 5, codes.shape[1]), codes)


def test_packed_bytes_by_hand() -> None:
    trits = np.array([[1, -1, 0, 1, 0, -1]], np.int8)
    # (2, 0, 1, 2, 1) . (1, 3, 9, 27, 81) = 2 + 9 + 54 + 81; then (0, 1, 1, 1, 1) = 3 + 9 + 27 + 81
    np.testing.assert_array_equal(encode.pack_base3(trits), [[146, 120]])
    np.testing.assert_array_equal(encode.pack_two_bits(trits), [[2 + (1 << 4) + (2 << 6), 1]])
    np.testing.assert_array_equal(
        encode.pack_bits(np.array([[3, 26]], np.uint8), 5), [[3 + (26 << 5) % 256, 3]]
    )


def test_what_stands_for_no_trits_is_refused() -> None:
    for call in (
        lambda: encode.unpack_base3(np.array([[243]], np.uint8), 5),
        lambda: encode.unpack_base3(np.array([[0]], np.uint8), 4),  # the fifth would be -1
        lambda: encode.unpack_two_bits(np.array([[3]], np.uint8), 1),
        lambda: encode.unpack_bits(np.zeros((1, 1), np.uint8), 5, 2),
        lambda: encode.pack_bits(np.array([[32]], np.uint8), 5),
        lambda: encode.group_values(np.array([[2]], np.int8), 3),
        lambda: encode.group_values(np.zeros((1, 1), np.int8), 6),
        lambda: encode.from_group_values(np.zeros((1, 2), np.int16), 3, 7),
        lambda: encode.from_half_codes(np.array([[0]], np.uint8), np.array([[True]])),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()

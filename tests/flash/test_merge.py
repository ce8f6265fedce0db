"""Merged reads against the requests, byte by byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgellm.flash.merge import merge


def test_neighbours_within_the_gap_become_one_read():
    merged = merge(np.array([100, 0, 40, 52]), np.array([10, 20, 10, 10]), gap=20)
    assert merged.offsets.tolist() == [0, 100]  # 20 to 40 and 50 to 52 are read in vain, 62 to 100 is not
    assert merged.lengths.tolist() == [62, 10]
    assert merged.read.tolist() == [1, 0, 0, 0]
    assert merged.within.tolist() == [0, 0, 40, 52]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), max_size=40),
    st.integers(0, 30),
)
def test_merged_reads_cover_the_requests_and_never_lie_within_the_gap(requests, gap):
    offsets = np.array([offset for offset, _ in requests], np.int64)
    lengths = np.array([length for _, length in requests], np.int64)
    merged = merge(offsets, lengths, gap)
    starts, ends = merged.offsets, merged.offsets + merged.lengths
    assert (starts[1:] - ends[:-1] > gap).all()
    for (offset, length), read, within in zip(requests, merged.read, merged.within, strict=True):
        assert starts[read] + within == offset
        assert 0 <= within <= merged.lengths[read] - length
    # Byte by byte: a read holds what was asked for, and holes of at most `gap`.
    asked = np.zeros(400, bool)
    for offset, length in requests:
        asked[offset : offset + length] = True
    for start, end in zip(starts, ends, strict=True):
        inside = asked[start:end]
        assert inside[0]
        assert inside[-1]
        holes = "".join("x" if byte else "." for byte in inside).split("x")
        assert max(map(len, holes)) <= gap
        asked[start:end] = False
    assert not asked.any()

"""Joining reads whose gap costs less than another request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Merged(NamedTuple):
    """Fewer reads that cover the n requests they were made from; arrays of int64.

    Request i is `lengths[i]` bytes (of the requests) at byte `within[i]` of read `read[i]`.
    """

    offsets: np.ndarray  # (reads,), rising
    lengths: np.ndarray  # (reads,)
    read: np.ndarray  # (n,)
    within: np.ndarray  # (n,)


def merge(offsets: np.ndarray, lengths: np.ndarray, gap: int) -> Merged:
    """Join requests (n,) that overlap, touch, or have at most `gap` bytes between them; in any order.

    Where the offsets and lengths are multiples of an alignment, the reads are too. `gap` is what the device
    delivers in the time of a request: Fit.gap_bytes of edgellm.flash.device.
    """
    offsets, lengths = np.asarray(offsets, np.int64), np.asarray(lengths, np.int64)
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order]
    ends = np.maximum.accumulate(starts + lengths[order])  # of all so far: a long one may hold later ones
    first = np.ones(len(starts), bool)
    first[1:] = starts[1:] - ends[:-1] > gap
    begins = np.flatnonzero(first)
    read = np.empty(len(starts), np.int64)
    read[order] = np.cumsum(first) - 1
    last = np.append(begins[1:], len(starts))[: len(begins)] - 1
    reads = starts[begins]
    return Merged(reads, ends[last] - reads, read, offsets - reads[read])

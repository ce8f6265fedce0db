"""Which parts of the weights stay in memory, and which are read from flash for every token.

Every matrix is read whole once a token, so no part is worth more memory than another. What is pinned is
spread evenly over the order of use: then the disk never waits for long stretches of computation, nor the
computation for long stretches of reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgellm.errors import EdgeError

LARGEST_UNIT = 8 << 20  # bytes of a read: flash gives its full speed long before, and a ring holds several
SMALLEST_UNIT = 256 << 10
UNITS = 256  # that a small model is cut into
FEWEST_SLOTS = 4  # one computed from, the others being read
ALIGNMENT = 4096  # room that direct reads may need in front of and behind a unit
_GROUP_SHARE = 0.25  # of the budget is worth spending on a ring that holds a whole block


@dataclass(frozen=True)
class Matrix:
    """A matrix in a file of packed tiles: `tiles` of `stride` bytes from `offset` on. group: number of the
    transformer block, or of what is before or behind them, in the order of use. pinned: must stay in memory,
    in one piece."""

    offset: int
    stride: int
    tiles: int
    group: int
    pinned: bool = False

    @property
    def nbytes(self) -> int:
        return self.tiles * self.stride


@dataclass(frozen=True)
class Span:
    """Neighbouring tiles of matrix number `matrix`."""

    matrix: int
    first: int
    tiles: int
    offset: int  # in the file
    nbytes: int
    pinned: bool = False


@dataclass(frozen=True)
class Residency:
    """spans: all of them, in the order of use. The others than the pinned ones take turns in a ring of
    `slots` times `slot_bytes`. whole_groups: the ring holds all that a group reads, so that several steps
    can share the reads."""

    spans: tuple[Span, ...]
    slots: int
    slot_bytes: int
    whole_groups: bool

    @property
    def pinned_bytes(self) -> int:
        return sum(span.nbytes for span in self.spans if span.pinned)

    @property
    def streamed_bytes(self) -> int:
        """That are read for every step."""
        return sum(span.nbytes for span in self.spans if not span.pinned)

    @property
    def ring_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def memory_bytes(self) -> int:
        return self.pinned_bytes + self.ring_bytes


def unit_bytes(total: int) -> int:
    """How much to read at once of weights of `total` bytes."""
    return min(max(total // UNITS, SMALLEST_UNIT), LARGEST_UNIT)


def cut(matrices: Sequence[Matrix], most: int) -> list[Span]:
    """Every matrix in parts of about the same size, of at most `most` bytes or a single tile."""
    spans = []
    for number, matrix in enumerate(matrices):
        if matrix.pinned:
            spans.append(Span(number, 0, matrix.tiles, matrix.offset, matrix.nbytes, True))
            continue
        count = -(-matrix.tiles // max(1, most // matrix.stride))
        edges = [matrix.tiles * i // count for i in range(count + 1)]
        for first, end in pairwise(edges):
            nbytes = (end - first) * matrix.stride
            spans.append(Span(number, first, end - first, matrix.offset + first * matrix.stride, nbytes))
    return spans


def resident_room(matrices: Sequence[Matrix]) -> int:
    """What all of them take in memory."""
    return sum(m.nbytes + 2 * ALIGNMENT for m in matrices)


def least_budget(matrices: Sequence[Matrix]) -> int:
    """The smallest budget that plan_residency takes where they do not fit."""
    try:
        plan_residency(matrices, 0)
    except TooSmall as error:
        return error.least
    return 0


def plan_residency(matrices: Sequence[Matrix], budget: int) -> Residency:
    """What to pin of the matrices, given in the order of use, when weights and ring may take `budget` bytes.

    Raises EdgeError, with the smallest budget that would do, when it does not hold a ring.
    """
    total = sum(m.nbytes for m in matrices)
    if resident_room(matrices) <= budget:
        spans = [Span(i, 0, m.tiles, m.offset, m.nbytes, True) for i, m in enumerate(matrices)]
        return Residency(tuple(spans), 0, 0, True)
    spans = cut(matrices, unit_bytes(total))
    slot = max(span.nbytes for span in spans if not span.pinned) + 2 * ALIGNMENT
    least = FEWEST_SLOTS * slot + sum(span.nbytes + 2 * ALIGNMENT for span in spans if span.pinned)
    if budget < least:
        raise TooSmall(least)
    groups = [matrices[span.matrix].group for span in spans]
    best = _with_ring(spans, groups, budget, FEWEST_SLOTS, slot)
    slots = FEWEST_SLOTS
    while not best.whole_groups and (slots + 1) * slot <= _GROUP_SHARE * budget:
        slots = max(slots + 1, min(_most_in_a_group(best.spans, groups), int(_GROUP_SHARE * budget) // slot))
        wider = _with_ring(spans, groups, budget, slots, slot)
        if wider.whole_groups:
            best = wider
            break
    return best


class TooSmall(EdgeError):
    """A budget does not hold what is needed at least: `least` bytes."""

    def __init__(self, least: int):
        super().__init__(f"The weights need at least {least / 2**20:.0f} MiB.")
        self.least = least


def _with_ring(spans: Sequence[Span], groups: Sequence[int], budget: int, slots: int, slot: int) -> Residency:
    pinned = _pin_evenly(spans, budget - slots * slot)
    whole = _most_in_a_group(pinned, groups) <= slots
    return Residency(tuple(pinned), slots, slot, whole)


def _pin_evenly(spans: Sequence[Span], budget: int) -> list[Span]:
    """The spans, pinned ones of at most `budget` bytes spread among them. A pinned span also costs the
    alignment of its read."""
    budget -= sum(span.nbytes + 2 * ALIGNMENT for span in spans if span.pinned)
    total = sum(span.nbytes for span in spans if not span.pinned)
    found, passed, held = [], 0, 0
    for span in spans:
        if span.pinned:
            found.append(span)
            continue
        passed += span.nbytes
        cost = span.nbytes + 2 * ALIGNMENT
        pin = held + cost <= budget * passed / total
        held += cost if pin else 0
        found.append(Span(span.matrix, span.first, span.tiles, span.offset, span.nbytes, pin))
    return found


def _most_in_a_group(spans: Sequence[Span], groups: Sequence[int]) -> int:
    counts: dict[int, int] = {}
    for span, group in zip(spans, groups, strict=True):
        counts[group] = counts.get(group, 0) + (not span.pinned)
    return max(counts.values())

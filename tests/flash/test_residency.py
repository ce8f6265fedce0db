"""What is pinned fits the budget, is spread evenly, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.flash.residency import ALIGNMENT, FEWEST_SLOTS, Matrix, Residency, TooSmall, plan_residency

LAYER = ((2048, 96), (2048, 24), (2048, 24), (2048, 96), (2048, 352), (2048, 352), (5632, 128))


def model(layers: int, scale: int = 1) -> list[Matrix]:
    """Matrices of `layers` blocks and an output matrix behind them, one behind the other in a file."""
    found, offset = [], 4096
    shapes = [(group, shape) for group in range(layers) for shape in LAYER] + [(layers, (2048, 2000))]
    for group, (stride, tiles) in shapes:
        found.append(Matrix(offset, stride * scale, tiles, group))
        offset += -(-stride * scale * tiles // 64) * 64
    return found


def covered(found: Residency, matrices: list[Matrix]) -> bool:
    """Whether the spans are the matrices, in order, each tile once."""
    tiles = [(s.matrix, t) for s in found.spans for t in range(s.first, s.first + s.tiles)]
    places = all(
        span.offset == matrices[span.matrix].offset + span.first * matrices[span.matrix].stride
        and span.nbytes == span.tiles * matrices[span.matrix].stride
        for span in found.spans
    )
    return places and tiles == [(i, t) for i, matrix in enumerate(matrices) for t in range(matrix.tiles)]


def least_budget(matrices: list[Matrix], budget: int) -> int | None:
    """What is asked for if the budget is too small."""
    try:
        plan_residency(matrices, budget)
    except TooSmall as error:
        return error.least
    return None


def test_what_fits_stays_in_memory_in_one_piece() -> None:
    matrices = model(4)
    found = plan_residency(matrices, 1 << 30)
    assert covered(found, matrices)
    assert len(found.spans) == len(matrices)
    assert (found.streamed_bytes, found.ring_bytes) == (0, 0)


@given(st.integers(1, 24), st.sampled_from([1, 8]), st.floats(0.0, 1.1))
def test_a_budget_is_kept_and_used(layers: int, scale: int, share: float) -> None:
    matrices = model(layers, scale)
    total = sum(matrix.nbytes for matrix in matrices)
    budget = int(share * total)
    least = least_budget(matrices, budget)
    if least is not None:
        assert least > budget
        assert plan_residency(matrices, least).streamed_bytes > 0
        return
    found = plan_residency(matrices, budget)
    assert covered(found, matrices)
    assert found.memory_bytes <= budget
    if found.streamed_bytes:
        largest = max(span.nbytes for span in found.spans)
        assert found.slots >= FEWEST_SLOTS
        assert found.slot_bytes >= max(s.nbytes for s in found.spans if not s.pinned) + ALIGNMENT
        padding = 2 * ALIGNMENT * len(found.spans)
        # Rounding to whole spans leaves at most about one of them unused.
        assert found.memory_bytes + padding + 2 * largest >= min(budget, total)


def test_pinned_parts_are_spread_over_the_blocks() -> None:
    matrices = model(20)
    total = sum(matrix.nbytes for matrix in matrices)
    found = plan_residency(matrices, int(0.6 * total))
    shares = []
    for group in range(20):
        spans = [span for span in found.spans if matrices[span.matrix].group == group]
        shares.append(sum(s.nbytes for s in spans if s.pinned) / sum(s.nbytes for s in spans))
    assert max(shares) - min(shares) < 0.25
    assert found.whole_groups


def test_a_matrix_that_must_stay_is_never_cut() -> None:
    matrices = [Matrix(0, 4096, 512, 0, pinned=True), *model(8)]
    found = plan_residency(matrices, 8 << 20)
    assert found.spans[0].pinned
    assert found.spans[0].tiles == 512
    assert found.streamed_bytes > 0
    with pytest.raises(TooSmall) as caught:
        plan_residency(matrices, 2 << 20)
    assert caught.value.least > 2 << 20

"""neuron_fire and neuron_check against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgellm.flash.lists import Lists
from edgellm.kernels.layout import Counts, NeuronFire, Totals
from edgellm.kernels.memory import address, aligned
from tests.kernels.conftest import RunKernel

NEURONS, PER_SLOT, ROW, STRIDE, NEURON, OFFSET = 120, 3, 1024, 1536, 300, 1 << 21
SLOTS = NEURONS // PER_SLOT
ARENA, STAGED, AREA, LENT, OWN = 1 << 40, 1 << 41, 1 << 42, 1 << 43, 25  # rows of its own


def listed(memory: np.ndarray) -> list[tuple[int, int]]:
    """(neuron, address) of a list."""
    pairs = memory[1 : 1 + 2 * memory[0]].reshape(-1, 2)
    return [(int(a), int(b)) for a, b in pairs]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("parts", [[(0, NEURONS)], [(60, 90), (90, NEURONS), (0, 60)]])
@pytest.mark.parametrize("gap", [-1, 0, 2 * STRIDE])
@pytest.mark.parametrize("ahead", [False, True])
def test_lists_and_reads(target, run_kernel: RunKernel, tokens: int, parts, gap: int, ahead: bool) -> None:
    rng = np.random.default_rng(gap + 7)
    act = aligned(tokens * NEURONS, np.float32).reshape(tokens, -1)
    act[:] = rng.standard_normal(act.shape)
    act[rng.random(act.shape) < 0.7] *= 0.01
    act[0, 7] = np.nan
    given, threshold = act.copy(), 0.5
    row_of = np.where(rng.random(SLOTS) < 0.4, np.arange(SLOTS), -1).astype(np.int64)
    scores, checked = np.linspace(0, 1, SLOTS), aligned(SLOTS, np.uint8)
    checked[::2] = 1
    before = scores.copy()
    lists = Lists(4, NEURONS)
    coming = np.where((row_of < 0) & (rng.random(SLOTS) < 0.5), AREA + ROW * np.arange(SLOTS), 0)
    lists.coming[1, :SLOTS], lists.held[1] = coming, 1 if ahead else 3
    if not ahead:
        coming[:] = 0
    lists.next[:] = 5
    lists.set(
        NeuronFire, lists.fire[1], ACT=address(act), ACT_STRIDE=4 * NEURONS, THRESHOLD=threshold,
        PER_SLOT=PER_SLOT, NEURON_BYTES=NEURON, ROW_OF=address(row_of), ARENA=ARENA, OWN=OWN, LENT=LENT,
        ROW_BYTES=ROW, STAGED=STAGED, STRIDE=STRIDE, LAYER_OFFSET=OFFSET, SCORES=address(scores), STEP=2.0,
        BAR=2.5, CHECKED=address(checked), GAP=gap,
    )  # fmt: skip
    for i, (first, last) in enumerate(parts):
        lists.set(NeuronFire, lists.fire[1, i], FIRST=first, LAST=last)
        run_kernel(target, "neuron_fire", lists.fire[1, i], TOKENS=tokens)

    quiet = np.abs(given) <= threshold
    np.testing.assert_array_equal(act, np.where(quiet, 0, given))
    fired = np.flatnonzero(~quiet.all(axis=0))
    slots = sorted(set((fired // PER_SLOT).tolist()))
    missing = [slot for slot in slots if row_of[slot] < 0]

    def base(slot: int) -> int:
        if row_of[slot] >= 0:
            row = int(row_of[slot])
            return ARENA + row * ROW if row < OWN else LENT + (row - OWN) * ROW
        return int(coming[slot] or STAGED + slot * STRIDE)

    def place(neuron: int) -> int:
        slot, within = divmod(neuron, PER_SLOT)
        return base(slot) + within * NEURON

    everyone = [(int(n), place(int(n))) for n in fired]
    assert listed(lists.all) == everyone  # ascending, whatever the parts
    away = set(missing)
    assert sorted(listed(lists.here)) == [one for one in everyone if one[0] // PER_SLOT not in away]
    assert sorted(listed(lists.arriving)) == [one for one in everyone if one[0] // PER_SLOT in away]
    needed, count, reads, submitted = lists.counts[: Counts.LANDED].tolist()
    assert sorted(lists.needed[:needed]) == slots
    assert sorted(lists.missing[:count]) == missing
    assert submitted == 0
    np.testing.assert_array_equal(np.flatnonzero(scores != before), slots)
    assert lists.totals[Totals.NEEDED] == needed
    assert lists.totals[Totals.MISSED] == count
    hopeful = [(slot, base(slot)) for slot in missing if scores[slot] > 2.5]
    assert sorted(listed(lists.hopeful)) == hopeful
    assert sorted(listed(lists.fresh)) == [(slot, base(slot)) for slot in missing if not checked[slot]]
    assert (lists.next[:, 0] == 0).all()
    covered: set[int] = set()
    to_read = [slot for slot in missing if not coming[slot]]
    for offset, length, to in lists.reads[0, :, :reads].T:
        first, rest = divmod(int(offset) - OFFSET, STRIDE)
        assert rest == 0
        assert to == STAGED + first * STRIDE
        last, rest = divmod(int(length) - ROW, STRIDE)
        assert rest == 0
        inside = [slot for slot in to_read if first <= slot <= first + last]
        assert inside[0] == first
        assert inside[-1] == first + last
        assert all((b - a) * STRIDE - ROW <= gap for a, b in itertools.pairwise(inside))
        assert not covered & set(inside)
        covered |= set(inside)
    assert covered == set(to_read)
    assert len(to_read) < len(missing) or not ahead

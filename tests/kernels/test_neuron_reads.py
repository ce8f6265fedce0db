"""Kernels that read neurons from a real file with an io_uring, check them and keep them, against NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgellm.flash.lists import NOBODY, Lists, tell
from edgellm.flash.uring import Ring, UringRefused
from edgellm.formats.slots import checksums
from edgellm.kernels.layout import (
    NO_READ,
    TAG_BITS,
    Counts,
    NeuronAhead,
    NeuronCheck,
    NeuronFire,
    NeuronKeep,
    NeuronQueue,
    Totals,
)
from edgellm.kernels.memory import address, aligned
from tests.kernels.conftest import RunKernel

SLOTS, PER_SLOT, ROW, OFFSET, DEPTH = 60, 2, 512, 4096, 8
NEURONS = SLOTS * PER_SLOT


@pytest.fixture
def content() -> np.ndarray:
    """(SLOTS, ROW) bytes of layer 1."""
    return np.random.default_rng(5).integers(0, 256, (SLOTS, ROW)).astype(np.uint8)


@pytest.fixture
def lists(tmp_path: Path, content: np.ndarray) -> Iterator[Lists]:
    """Connected with a ring that is soon full, and the file."""
    (tmp_path / "ffn.bin").write_bytes(bytes(OFFSET) + content.tobytes())
    lists = Lists(2, NEURONS)
    try:
        ring = Ring(DEPTH)
    except UringRefused as refused:
        pytest.skip(f"io_uring {refused}")
    with (tmp_path / "ffn.bin").open("rb") as file:
        lists.set(NeuronQueue, lists.queue, FILE=file.fileno(), **ring.native)
        yield lists
        ring.close()


def arrived(lists: Lists) -> bool:
    assert (lists.pending == 0).all()
    return not lists.stops[0]


@pytest.mark.parametrize("gap", [-1, 0, 2 * ROW])
@pytest.mark.parametrize("room", [SLOTS, 12])
def test_reading_ahead(target, run_kernel: RunKernel, lists, content, gap: int, room: int) -> None:
    rng = np.random.default_rng(gap + room)
    act = aligned(NEURONS, np.float32)
    act[:] = np.where(rng.random(NEURONS) < 0.4, rng.standard_normal(NEURONS), 0)
    row_of = np.where(rng.random(SLOTS) < 0.3, 0, -1).astype(np.int64)
    area = aligned(SLOTS * ROW, np.uint8)
    lists.coming[1, :3], lists.ahead[1, :4] = 77, [3, 0, 1, 2]  # of the layer before the last
    first, last = 10, 100
    lists.set(
        NeuronAhead, lists.ahead_of[1], FIRST=first, LAST=last, ACT=address(act), THRESHOLD=0.5, GAP=gap,
        PER_SLOT=PER_SLOT, ROW_OF=address(row_of), ROW_BYTES=ROW, STRIDE=ROW, LAYER_OFFSET=OFFSET,
        AREA=address(area), AREA_BYTES=room * ROW,
    )  # fmt: skip
    run_kernel(target, "neuron_ahead", lists.ahead_of[1])
    run_kernel(target, "neuron_arrive", lists.arrive[1])
    assert arrived(lists)
    assert lists.held.tolist() == [NOBODY, 1]
    wanted = np.unique(np.flatnonzero(np.abs(act[first:last]) > 0.5) + first) // PER_SLOT
    wanted = [int(slot) for slot in np.unique(wanted) if row_of[slot] < 0]
    slots = lists.ahead[1, 1 : 1 + lists.ahead[1, 0]].tolist()
    assert slots == wanted[: len(slots)]
    assert (slots == wanted) == (room == SLOTS)
    assert set(np.flatnonzero(lists.coming[1])) == set(slots)
    for slot in slots:
        at = lists.coming[1, slot] - address(area)
        assert 0 <= at <= (room - 1) * ROW
        assert (area[at : at + ROW] == content[slot]).all()
    reads = 1 + int((np.diff(slots) * ROW - ROW > gap).sum())
    assert lists.totals[Totals.READS] == reads
    assert lists.totals[Totals.BYTES] >= len(slots) * ROW


@pytest.mark.parametrize("room", [None, SLOTS, 21, 0])
@pytest.mark.parametrize("gap", [-1, 0, 2 * ROW])
def test_firing_reads_what_is_missing(target, run_kernel: RunKernel, lists, content, room, gap: int) -> None:
    """More than the ring takes at a time. room: slots that may land one behind the other; None: all are
    staged."""
    act, staged = aligned(NEURONS, np.float32), aligned(SLOTS * ROW, np.uint8)
    act[:] = np.arange(NEURONS) // PER_SLOT % 4 != 2
    wanted = [slot for slot in range(SLOTS) if slot % 4 != 2]
    landing = aligned(SLOTS * ROW, np.uint8)
    row_of, scores = np.full(SLOTS, -1, np.int64), np.zeros(SLOTS)
    checked = aligned(SLOTS, np.uint8)
    lists.set(
        NeuronFire, lists.fire[1], ACT=address(act), ACT_STRIDE=act.nbytes, THRESHOLD=0.0, PER_SLOT=PER_SLOT,
        NEURON_BYTES=ROW // PER_SLOT, ROW_OF=address(row_of), ROW_BYTES=ROW, STAGED=address(staged),
        STRIDE=ROW, LAYER_OFFSET=OFFSET, SCORES=address(scores), STEP=1.0, BAR=0.0,
        CHECKED=address(checked), GAP=gap, LANDING=0 if room is None else address(landing),
        LANDING_BYTES=(room or 0) * ROW,
    )  # fmt: skip
    for i, first in enumerate((0, NEURONS // 2)):
        lists.set(NeuronFire, lists.fire[1, i], FIRST=first, LAST=first + NEURONS // 2)
    for i in range(2):
        run_kernel(target, "neuron_fire/submits=1", lists.fire[1, i])
    needed, missing, reads, submitted = lists.counts[: Counts.LANDED].tolist()
    assert needed == missing == len(wanted)
    run_kernel(target, "neuron_arrive", lists.arrive[1])
    fits = room in (None, SLOTS)
    assert arrived(lists) == fits
    assert (submitted == reads) == fits
    unplaced = int(lists.counts[Counts.UNPLACED])
    assert unplaced == (NO_READ if fits else submitted)
    assert lists.counts[Counts.LAYER] == 1
    inside = range(address(landing), address(landing) + (room or 0) * ROW)
    for i, (offset, length, place) in enumerate(lists.reads[0, :, :reads].T.tolist()):
        if i >= submitted:  # the step stops, and somebody else reads it to where that layer is as in the file
            assert place == address(staged) + offset - OFFSET
            staged[offset - OFFSET :][:length] = content.reshape(-1)[offset - OFFSET :][:length]
        elif room is not None:
            assert place in inside
            assert place + length - 1 in inside
    pairs = lists.fresh[1 : 1 + 2 * lists.fresh[0]].reshape(-1, 2).tolist()
    assert [slot for slot, _ in pairs] == wanted
    for slot, place in pairs:
        memory = landing if address(landing) <= place < address(landing) + landing.nbytes else staged
        at = place - address(memory)
        assert (memory[at : at + ROW] == content[slot]).all()
    assert lists.totals[Totals.READS] == reads
    assert lists.totals[Totals.BYTES] == lists.reads[0, 1, :reads].sum()


def test_reads_that_come_short_stop_the_step(target, run_kernel: RunKernel, lists) -> None:
    act, area = aligned(NEURONS, np.float32), aligned(4 * ROW, np.uint8)
    act[[0, 7, 9]] = 1
    row_of = np.full(SLOTS, -1, np.int64)
    lists.set(
        NeuronAhead, lists.ahead_of[1], FIRST=0, LAST=NEURONS, ACT=address(act), THRESHOLD=0.0, GAP=-1,
        PER_SLOT=PER_SLOT, ROW_OF=address(row_of), ROW_BYTES=ROW, STRIDE=ROW,
        LAYER_OFFSET=OFFSET + (SLOTS - 4) * ROW, AREA=address(area), AREA_BYTES=4 * ROW,
    )  # fmt: skip
    run_kernel(target, "neuron_ahead", lists.ahead_of[1])  # slot 4 is behind the end of the file
    run_kernel(target, "neuron_arrive", lists.arrive[1])
    assert not arrived(lists)
    assert lists.failed[0] == 1
    kind, number = divmod(int(lists.failed[1]), 1 << TAG_BITS)
    assert kind == 2
    assert lists.reads[kind, 0, number] == OFFSET + SLOTS * ROW


def test_a_ring_that_cannot_be_waited_for_stops_the_step(target, run_kernel: RunKernel, lists) -> None:
    lists.set(NeuronQueue, lists.queue, RING=-1)
    lists.pending[0] = 1
    run_kernel(target, "neuron_arrive", lists.arrive[0])
    assert lists.stops[0] == 1


@pytest.mark.parametrize("more", [0, 256])
def test_checksums(target, run_kernel: RunKernel, content, more: int) -> None:
    lists, checked = Lists(2, NEURONS), aligned(SLOTS, np.uint8)
    sums = np.stack([checksums(content[:, : ROW - more]), checksums(content[:, ROW - more :])], axis=1)
    sums = np.ascontiguousarray(sums, np.uint64)
    slots = np.array([3, 11, 40])
    lists.set(
        NeuronCheck, lists.check[1], SUMS=address(sums), CHECKED=address(checked), BYTES=ROW - more,
        MORE=ROW - more, MORE_BYTES=more,
    )  # fmt: skip
    tell(lists.fresh, slots, np.array([address(content[slot]) for slot in slots]))
    run_kernel(target, "neuron_check", lists.check[1])
    assert np.flatnonzero(checked).tolist() == slots.tolist()
    assert lists.wrong[0] == NOBODY
    for bit in range(8):
        for at in (77, ROW - 1):
            checked[:] = lists.stops[:] = 0
            content[11, at] ^= 1 << bit
            run_kernel(target, "neuron_check", lists.check[1])
            content[11, at] ^= 1 << bit
            assert lists.wrong.tolist() == [1, 11]
            assert lists.stops.tolist() == [0, 1]
            assert not checked[11]


def test_newcomers_get_the_rows_of_the_least_popular(target, run_kernel: RunKernel, content) -> None:
    lists, arena, lent = Lists(2, NEURONS), aligned(2 * ROW, np.uint8), aligned(2 * ROW, np.uint8)
    scores, mask = np.arange(SLOTS, dtype=float), aligned(NEURONS, np.uint8)
    row_of, pointer = np.full(SLOTS, -1, np.int64), np.array([2, 5, 30, 40], np.int64)
    row_of[pointer] = range(4)
    weakest, used = np.array([3, 0, 0, 1, 2, 0], np.int64), np.array([4], np.int64)
    mask[2 * 5 + 1] = 1  # slot 5 is needed
    lists.set(
        NeuronKeep, lists.keep[1], WEAKEST=address(weakest), SCORES=address(scores), ROW_OF=address(row_of),
        POINTER=address(pointer), NUM_USED=address(used), MASK=address(mask), PER_SLOT=PER_SLOT,
        ROW_BYTES=ROW, CAPACITY=4, ARENA=address(arena), OWN=2, LENT=address(lent), HYSTERESIS=1.05,
    )  # fmt: skip
    newcomers = np.array([1, 20, 31, 50])
    tell(lists.hopeful, newcomers, np.array([address(content[slot]) for slot in newcomers]))
    run_kernel(target, "neuron_keep", lists.keep[1])
    # 1 is less popular than 2; 20 takes its row; 5 stays; 31 is not popular enough to replace 30; 50 is
    assert pointer.tolist() == [20, 5, 50, 40]
    assert {int(slot): int(row_of[slot]) for slot in np.flatnonzero(row_of >= 0)} == {
        20: 0,
        5: 1,
        50: 2,
        40: 3,
    }
    rows = np.append(arena, lent).reshape(4, ROW)
    assert (rows[[0, 2]] == content[[20, 50]]).all()
    assert not rows[[1, 3]].any()
    assert weakest[:2].tolist() == [3, 3]

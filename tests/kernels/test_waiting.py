"""How long a thread spins at a barrier depends on whether the system takes CPUs from this process."""

from __future__ import annotations

import sys
import threading
import time

import numba
import numpy as np
import pytest

from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import host_target
from edgellm.kernels.waiting import CALM, MOST_HASTE, haste_after, make_barrier, make_preempted

SLEEPERS, HASTE, PREEMPTED = 8, 9, 10  # int64 of a barrier's memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a waiting thread naps")
_preempted, _barrier = make_preempted(host_target()), make_barrier(host_target())


@numba.njit(nogil=True)
def preempted() -> int:
    return _preempted()


@numba.njit(nogil=True)
def barrier(memory: int, threads: int) -> None:
    _barrier(memory, threads)


def wait_long(memory: np.ndarray) -> None:
    """Two threads meet, one of them late enough for the other to sleep."""
    early = threading.Thread(target=barrier, args=(address(memory), 2))
    early.start()
    deadline = time.monotonic() + 10
    while memory[SLEEPERS] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    barrier(address(memory), 2)
    early.join()


def test_preemptions_are_those_that_the_system_counts() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    found = preempted()
    assert before <= found <= resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def test_a_long_wait_after_a_preemption_shortens_the_next_spinning() -> None:
    memory = aligned(16, np.int64)
    for haste in (0, MOST_HASTE * CALM):
        memory[HASTE], memory[PREEMPTED] = haste, -1
        wait_long(memory)
        assert memory[HASTE] == min(haste + CALM, MOST_HASTE * CALM)
        assert memory[PREEMPTED] >= 0
        assert memory[SLEEPERS] == 0


def test_haste_rises_by_preemptions_and_falls_without() -> None:
    @numba.njit
    def after(haste: int, preempted: bool) -> int:
        return haste_after(haste, preempted)

    most = MOST_HASTE * CALM
    assert [after(haste, True) for haste in (0, 3, most - 1, most)] == [CALM, CALM + 3, most, most]
    assert [after(haste, False) for haste in (most, CALM, 1, 0)] == [most - 1, CALM - 1, 0, 0]

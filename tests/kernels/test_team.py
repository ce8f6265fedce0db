"""The thread team: every thread takes part, barriers hold, and closing ends the threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edgellm.kernels.bandwidth import measure
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Elementwise, Instruction, State, Step, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import host_target
from edgellm.kernels.team import Team


def run_chain(threads: int, steps: int, calls: int) -> np.ndarray:
    """x = x + x shifted by a vector, `steps` times a call, each step reading what other threads wrote."""
    target = host_target()
    kernels = load_kernels(["elementwise/function=add", "step"], target)
    vectors = 64
    buffers = [aligned(16 * (vectors + 1), np.float32) for _ in range(2)]
    buffers[0][:] = np.arange(len(buffers[0])) % 7
    records = []
    for i in range(steps):
        source, out = address(buffers[i % 2]), address(buffers[(i + 1) % 2])
        records.append(record(Elementwise, X=source, Y=source + 64, OUT=out, VECTORS=vectors))
    table = aligned(len(Instruction) * steps, np.int64).reshape(steps, len(Instruction))
    for row, args in zip(table, records, strict=True):
        row[:4] = kernels["elementwise/function=add"], address(args), 1, 1
    step = record(Step, COUNT=steps, TABLE=address(table), TAIL=steps)
    barrier = aligned(16, np.int64)
    state = record(State, TOKENS=1, BARRIER=address(barrier))
    team = Team(threads, target)
    for _ in range(calls):
        team.run(kernels["step"], address(step), address(state))
        buffers[0] *= np.float32(0.5**steps)
    team.close()
    return buffers[0].copy()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    alone = run_chain(1, 40, 25)
    for threads in (2, 3, 5):  # more than this machine has cores: waiting threads must give way
        np.testing.assert_array_equal(run_chain(threads, 40, 25), alone)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_step_ends_where_it_is_stopped_and_leaves_out_what_is_for_lone_tokens(
    threads: int, tokens: int
) -> None:
    target = host_target()
    kernels = load_kernels(["elementwise/function=add", "step"], target)
    one, sums = (aligned(2 * 16, np.float32) for _ in range(2))
    one[:] = 1
    add = record(
        Elementwise, X=address(sums), X_STRIDE=64, Y=address(one), Y_STRIDE=64, OUT=address(sums),
        OUT_STRIDE=64, VECTORS=1,
    )  # fmt: skip
    words, stopped, barrier = np.array([0, 1]), aligned(1, np.int64), aligned(16, np.int64)
    table = aligned(len(Instruction) * 5, np.int64).reshape(5, len(Instruction))
    table[:, :4] = kernels["elementwise/function=add"], address(add), 1, 1
    table[1, Instruction.LONE] = 1
    table[2, Instruction.STOPS], table[3, Instruction.STOPS] = address(words), address(words[1:])
    step = record(Step, COUNT=5, TABLE=address(table), TAIL=5, STOPPED=address(stopped))
    state = record(State, TOKENS=tokens, BARRIER=address(barrier))
    team = Team(threads, target)
    team.run(kernels["step"], address(step), address(state))
    team.close()
    assert stopped[0] == 4  # the number of the next one
    done = 4 if tokens == 1 else 3
    assert sums.reshape(2, 16)[:, 0].tolist() == [done, done if tokens == 2 else 0]


def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    team = Team(4, host_target())
    assert threading.active_count() == before + 3
    team.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_bandwidth_is_that_of_a_memory() -> None:
    speed = measure(1, nbytes=64 << 20)
    assert 5e7 < speed < 1e12

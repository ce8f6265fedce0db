"""Bounds and medians against values worked out by hand."""

from __future__ import annotations

import pytest

from edgellm.executors.native.profile import OpTime
from edgellm.roofline import Machine, Step, median, table

MACHINE = Machine(stream=20e9, int8=400e9, float32=100e9)


def test_the_bound_is_what_takes_longest() -> None:
    # 20 MB take 1 ms; 40 M multiply-adds of int8 0.1 ms
    assert MACHINE.bound(OpTime("a", weight_bytes=20_000_000, int8_macs=40_000_000)) == ("memory", 1e-3)
    assert MACHINE.bound(OpTime("b", weight_bytes=2_000, int8_macs=40_000_000)) == ("int8", 1e-4)
    assert MACHINE.bound(OpTime("c", kv_bytes=2_000, float_macs=1_000_000)) == ("float32", 1e-5)
    assert MACHINE.bound(OpTime("d", seconds=1.0)) == (None, 0.0)


def test_an_op_that_takes_twice_its_bound_reaches_half_of_it() -> None:
    step = Step(1, 0, 5e-3, [OpTime("ffn_up", 4, 20_000_000, seconds=2e-3), OpTime("norm", 4, seconds=1e-3)])
    linear, norm = step.report(MACHINE)["ops"]
    assert (linear["bound"], linear["share"]) == ("memory", pytest.approx(0.5))
    assert (norm["bound"], norm["share"]) == (None, None)


def test_the_median_run_is_taken_of_each_time() -> None:
    runs = [
        [
            OpTime("a", 1, seconds=s, mean_seconds=s, wait_seconds=w),
            OpTime("b", 2, seconds=1.0, mean_seconds=1.0),
        ]
        for s, w in ((1.0, 0.5), (9.0, 0.1), (2.0, 0.7))
    ]
    whole, (a, b) = median(runs)
    assert whole == pytest.approx(3.7)  # of 2.5, 10.1 and 3.7
    assert (a.seconds, a.wait_seconds, a.calls) == (2.0, 0.5, 1)
    assert (b.seconds, b.calls) == (1.0, 2)


def test_the_table_says_what_bounds_each_op_and_how_near_it_is() -> None:
    ops = [
        OpTime("attn_q", 30, 20_000_000, int8_macs=19_900_000, seconds=2e-3, mean_seconds=1.5e-3),
        OpTime("norm", 61, seconds=50e-6, mean_seconds=50e-6, wait_seconds=1.5e-3),
    ]
    lines = table(Step(1, 128, 5e-3, ops).report(MACHINE)).splitlines()
    assert lines[0] == "decode at depth 128: 5.00 ms a step, 200.0 tokens/s while profiled"
    assert lines[2].split() == [
        *("attn_q", "30", "20.0", "MB", "-", "19.9", "M", "-", "2.00", "ms", "0.0", "us", "30.0%"),
        *("memory,", "50%", "of", "it"),
    ]
    assert lines[3].split() == [
        *("norm", "61", "-", "-", "-", "-", "50.0", "us", "1.50", "ms", "31.0%", "-"),
    ]
    assert lines[4] == "  all at their bounds: 1.00 ms, 20% of the step; in barriers 30.0% of it"

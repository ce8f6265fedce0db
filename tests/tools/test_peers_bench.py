from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from edgellm.errors import CheckFailed, EdgeError
from tools.peers import bench, chart

LLAMA_BENCH = json.dumps(
    [
        {"n_prompt": 128, "n_gen": 0, "samples_ts": [515.6, 519.6, 500.0]},
        {"n_prompt": 0, "n_gen": 64, "samples_ts": [152.8, 163.6]},
    ]
)


def test_llama_bench_rows_become_medians_by_test():
    assert bench.parse_llama_bench(LLAMA_BENCH) == {"pp128": 515.6, "tg64": pytest.approx(158.2)}


def test_programs_alternate_and_ratios_are_taken_within_a_round():
    calls = []
    ours, theirs = iter([200.0, 300.0, 100.0]), iter([100.0, 100.0, 50.0])

    def edgellm(threads):
        calls.append("edgellm")
        return {"tg64": next(ours)}

    def peer(threads):
        calls.append("peer")
        return {"tg64": next(theirs)}

    (series,) = bench.measure(edgellm, peer, 2, 3)
    assert calls == ["edgellm", "peer", "peer", "edgellm", "edgellm", "peer"]
    assert series.ratios == [2.0, 3.0, 2.0]
    assert series.summary()["ratio"] == {"median": 2.0, "samples": [2.0, 3.0, 2.0]}


def test_programs_that_measured_different_tests_are_refused():
    with pytest.raises(CheckFailed, match="not the same tests"):
        bench.measure(lambda _: {"pp128": 1.0}, lambda _: {"pp512": 1.0}, 1, 1)


@pytest.mark.parametrize(
    ("text", "floor"),
    [("1.0", (None, None, 1.0)), ("tg64=1.2", ("tg64", None, 1.2)), ("tg64@2=.9", ("tg64", 2, 0.9))],
)
def test_floors_are_read(text, floor):
    assert bench.parse_floor(text) == floor


@pytest.mark.parametrize("text", ["", "fast", "tg64@two=1", "tg64="])
def test_a_malformed_floor_is_one_sentence(text):
    with pytest.raises(EdgeError, match="write RATIO"):
        bench.parse_floor(text)


def test_a_missed_floor_fails_and_a_met_one_does_not():
    one = [bench.Series("tg64", 1, [90.0], [100.0]), bench.Series("pp128", 1, [200.0], [100.0])]
    bench.check(one, [("pp128", None, 2.0), ("tg64", 1, 0.9)])
    with pytest.raises(CheckFailed, match=r"tg64 with 1 threads is 0\.900"):
        bench.check(one, [(None, None, 1.0)])


def test_a_floor_for_what_was_not_measured_is_refused():
    with pytest.raises(EdgeError, match="not measured"):
        bench.check([bench.Series("tg64", 1, [1.0], [1.0])], [("tg32", None, 1.0)])


def test_the_longest_bar_of_each_test_is_the_fastest():
    series = [bench.Series("pp128", 1, [600.0], [300.0]), bench.Series("tg64", 1, [80.0], [160.0])]
    root = ElementTree.fromstring(chart.bars("a < b", [s.summary() for s in series]))
    widths = [float(r.get("width")) for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("x")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert widths[3] == pytest.approx(2 * widths[2], rel=0.01)
    assert widths[0] == widths[3]

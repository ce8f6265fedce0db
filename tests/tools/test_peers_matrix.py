"""The matrix: what it runs, how rounds become figures, and that a missed bar is told."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from edgellm.errors import CheckFailed, EdgeError
from tools.peers import chart, figures, genai, matrix, rows
from tools.peers.figures import Figure, evaluate
from tools.peers.rows import Call, Plan, Row, Source, plan

OURS, PEER = Call("edgellm", "model", 2), Call("llama.cpp", "model", 2)
EDGELLM_BENCH = json.dumps(
    {
        "results": [
            {"test": "pp128", "tokens_per_second": {"median": 900.0, "samples": [900.0]}},
            {"test": "tg64", "tokens_per_second": {"median": 200.0, "samples": [200.0]}},
        ],
        "memory": {"peak_rss_bytes": 300_000_000, "weights_bytes": 90_000_000, "kv_bytes": 10_000_000},
        "bandwidth": {"stream_bytes_per_second": 20e9, "achieved_bytes_per_second": 15e9},
    }
)
LLAMA_BENCH = json.dumps(
    [
        {"n_prompt": 128, "n_gen": 0, "flash_attn": False, "samples_ts": [515.6, 519.6, 500.0]},
        {"n_prompt": 0, "n_gen": 64, "flash_attn": 0, "samples_ts": [152.8, 163.6]},
        {"n_prompt": 0, "n_gen": 64, "flash_attn": 1, "samples_ts": [150.0]},
    ]
)


def row(**more: object) -> Row:
    fields = {"ours": Source(OURS, "tg64"), "peer": Source(PEER, "tg64"), "bar": 2.0, **more}
    return Row("decode", "tg64", "model", 2, **fields)  # type: ignore[arg-type]


def figure(ours: list[float], theirs: dict[str, list[float]], **more: object) -> Figure:
    return evaluate(row(**more), {OURS: {"tg64": ours}, PEER: theirs}, {})


def test_edgellm_tells_speed_memory_and_bandwidth():
    assert matrix.parse_edgellm(EDGELLM_BENCH) == {
        "pp128": 900.0,
        "tg64": 200.0,
        "peak RSS beyond weights and KV": 200.0,  # MB
        "share of stream bandwidth": 75.0,  # %
    }


def test_llama_bench_tells_speed_with_and_without_flash_attention():
    assert matrix.parse_llama(LLAMA_BENCH) == {
        "pp128 fa=0": 515.6,
        "tg64 fa=0": pytest.approx(158.2),
        "tg64 fa=1": 150.0,
    }


def test_openvino_prints_its_samples_last():
    assert genai.parse('loading ...\n{"pp128": [1.0, 2.0]}\n') == {"pp128": [1.0, 2.0]}


def test_the_peer_counts_with_its_better_variant():
    found = figure(
        [200.0, 220.0], {"tg64 fa=0": [90.0, 92.0], "tg64 fa=1": [100.0, 110.0], "tg6 fa=0": [999.0]}
    )
    assert found.peer_name == "llama.cpp fa=1"
    assert found.values == [2.0, 2.0]
    assert found.met is True


@pytest.mark.parametrize(
    ("ours", "at_most", "met"),
    [(2.0, False, True), (1.99, False, False), (2.0, True, True), (2.01, True, False)],
)
def test_a_bar_is_met_from_the_bar_on(ours, at_most, met):
    found = figure([ours], {}, peer=None, at_most=at_most, unit="MB")
    assert found.value == ours
    assert found.met is met


def test_a_ratio_in_percent_is_of_the_peer():
    assert figure([40.0], {"tg64": [100.0]}, unit="%").value == 40.0


def test_a_figure_without_a_bar_is_told_and_not_judged():
    found = figure([1.0], {"tg64": [4.0]}, bar=None)
    assert (found.value, found.met) == (0.25, None)
    figures.check([found])


def test_a_missed_bar_fails_the_check_and_is_named_in_the_table():
    met = figure([300.0], {"tg64 fa=0": [100.0]})
    missed = figure([150.0], {"tg64 fa=0": [100.0]})
    figures.check([met])
    with pytest.raises(CheckFailed, match=r"1 of 2 bars: tg64, model, 2 threads: 1\.50x, not >= 2\.00x"):
        figures.check([met, missed])
    lines = figures.table([met, missed]).splitlines()
    assert lines[1].endswith("llama.cpp fa=0     3.00x  >= 2.00x  met")
    assert lines[2].endswith("llama.cpp fa=0     1.50x  >= 2.00x  MISSED")
    assert lines[3] == "1 of 2 bars met"


def test_what_could_not_be_measured_is_told_with_its_reason_once():
    found = [evaluate(row(), {}, {PEER: "pip found no wheel."}) for _ in range(2)]
    found.append(evaluate(row(ours=None, peer=None, reason="no AMX"), {}, {}))
    lines = figures.table(found).splitlines()
    assert [line.partition("2.00x  ")[2] for line in lines[1:4]] == [
        "not measurable here [1]", "not measurable here [1]", "not measurable here [2]",
    ]  # fmt: skip
    assert lines[4:] == ["[1] pip found no wheel.", "[2] no AMX", "0 of 0 bars met"]
    assert all(f.met is None and f.report()["value"] is None for f in found)
    assert found[2].report()["reason"] == "no AMX"


def test_the_table_for_the_documentation_holds_what_was_measured():
    found = [
        figure([300.0], {"tg64 fa=0": [100.0]}),
        figure([150.0], {}, peer=None, bar=200, unit="MB", at_most=True),
        evaluate(row(reason="no AMX"), {}, {}),
        figure([100.0], {"tg64 fa=1": [100.0]}, activations="8"),
    ]
    assert figures.markdown(found).splitlines()[2:] == [
        "| tg64 | model | 2 | 300.0 | 100.0 (llama.cpp fa=0) | **3.00x** | at least 2.00x |",
        "| tg64 | model | 2 |  |  | **150 MB** | at most 200 MB |",
        "| tg64, 8-bit activations | model | 2 | 100.0 | 100.0 (llama.cpp fa=1) | 1.00x | at least 2.00x |",
    ]


def test_a_report_holds_every_sample():
    told = figure([200.0, 100.0], {"tg64 fa=0": [100.0, 100.0]}).report()
    assert told["edgellm"] == {"median": 150.0, "samples": [200.0, 100.0]}
    assert told["peer"] == {"name": "llama.cpp fa=0", "median": 100.0, "samples": [100.0, 100.0]}
    assert told["value"] == {"median": 1.5, "samples": [2.0, 1.0], "unit": "x"}
    assert told["met"] is False
    json.dumps(told)


def test_programs_run_once_a_round_and_the_order_turns():
    asked = []

    class Recorder:
        def prepare(self):
            asked.append("prepare")

        def __call__(self, call):
            asked.append(call.program)
            return {"tg64": float(len(asked))}

    found, missing = matrix.measure(Plan([row()], [OURS, PEER]), Recorder(), 2)
    assert asked == ["prepare", "edgellm", "llama.cpp", "llama.cpp", "edgellm"]
    assert found == {OURS: {"tg64": [2.0, 5.0]}, PEER: {"tg64": [3.0, 4.0]}}
    assert missing == {}


def test_only_openvino_may_be_missing():
    class Broken:
        def prepare(self):
            pass

        def __call__(self, call):
            raise EdgeError("it broke")

    call = Call("openvino", "model", 2)
    _, missing = matrix.measure(Plan([], [call]), Broken(), 2)
    assert missing == {call: "it broke"}
    with pytest.raises(EdgeError, match="it broke"):
        matrix.measure(Plan([], [OURS]), Broken(), 1)


def test_every_group_has_rows_and_every_row_its_calls():
    whole = plan()
    assert list(dict.fromkeys(r.group for r in whole.rows)) == list(rows.GROUPS)
    for r in whole.rows:
        for source in (r.ours, r.peer):
            assert source is None or source.call in whole.calls
    assert len(set(whole.calls)) == len(whole.calls)


def test_a_group_needs_only_its_own_calls():
    assert {call.program for call in plan(["openvino"]).calls} == {"edgellm", "openvino"}
    assert plan(["memory"]).calls == [rows._main(subject) for subject in rows.USUAL]


def test_what_is_compared_runs_next_to_each_other():
    calls = plan(["decode"]).calls
    assert [(c.program, c.threads) for c in calls[:4]] == [
        ("edgellm", 1), ("llama.cpp", 1), ("edgellm", 2), ("llama.cpp", 2),
    ]  # fmt: skip
    assert len({c.subject for c in calls[:4]}) == 1


def test_without_amx_its_rows_say_so_and_the_others_have_the_lower_bar():
    found = plan(["prefill"]).rows
    assert {(r.bar, r.reason) for r in found} == {(4.0, "no AMX"), (2.0, "")}
    assert all(r.ours is None for r in found if r.reason)


def test_with_amx_prefill_is_measured_with_it_and_without():
    found = [r for r in plan(["prefill"], amx=True).rows if r.what.startswith("pp128")]
    assert {(r.what, r.bar) for r in found} == {("pp128, AMX", 4.0), ("pp128, AMX off", 2.0)}
    for r in found:
        assert r.ours is not None
        assert dict(r.ours.call.environment) == ({} if r.bar == 4.0 else {"EDGELLM_SIMD": "avx512"})
    assert {r.bar for r in plan(["openvino"], amx=True).rows} == {1.3, None}


def test_prefill_is_measured_with_each_width_of_activations():
    found = plan(["prefill"], ["16", "8"]).rows
    eight = [r for r in found if r.activations == "8"]
    assert eight
    for r in eight:
        assert r.ours is not None
        assert r.ours.call.options[-2:] == ("--activations", "int8")


def options(**more: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    matrix.add_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **more})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rounds": -1}, "--rounds must be at least 1"),
        ({"only": ["decode", "speed"]}, "--only speed: choose from decode,bandwidth"),
        ({"activations": ["4"]}, "--activations 4: choose from 16,8"),
    ],
)
def test_a_wrong_option_is_one_sentence(wrong, sentence):
    with pytest.raises(EdgeError, match=sentence):
        matrix.run(options(**wrong))


def test_a_run_writes_table_json_and_chart_and_fails_the_check(monkeypatch, tmp_path, capsys):
    """The whole command, with programs that are as fast as they say."""
    speeds = {"edgellm": 300.0, "llama.cpp": 200.0}

    class Pretended(matrix.Runner):
        def prepare(self):
            pass

        def __call__(self, call):
            variant = " fa=0" if call.program == "llama.cpp" else ""
            return {f"tg64{variant}": speeds[call.program]}

    subjects = {name: argparse.Namespace(file=lambda: Path("model.gguf")) for name in rows.SUBJECTS}
    monkeypatch.setattr(matrix, "SUBJECTS", subjects)
    monkeypatch.setattr(matrix, "Runner", Pretended)
    wanted = options(
        only=["decode"], rounds=2, check=True, json=tmp_path / "new" / "a.json", svg=tmp_path / "a.svg"
    )
    with pytest.raises(CheckFailed, match="Missed 6 of 6 bars"):
        matrix.run(wanted)
    assert "0 of 6 bars met" in capsys.readouterr().out
    told = json.loads((tmp_path / "new" / "a.json").read_text())
    assert told["rounds"] == 2
    assert [r["value"]["median"] for r in told["rows"]] == [1.5] * 6
    assert {"cpu", "cores", "simd", "amx"} <= told["machine"].keys()
    ElementTree.parse(tmp_path / "a.svg")


def test_llama_cpp_runs_with_flash_attention_off_and_on_and_its_other_defaults(monkeypatch):
    asked = []

    def output(command, **more):
        asked.append(command)
        return LLAMA_BENCH

    monkeypatch.setattr(matrix, "output", output)
    monkeypatch.setattr(matrix.build, "program", Path)
    name = next(iter(rows.SUBJECTS))
    found = matrix.Runner({name: Path("m.gguf")}, [])(Call("llama.cpp", name, 2, ("-p", "0", "-n", "64")))
    assert found["tg64 fa=1"] == 150.0
    assert asked == [
        [
            "llama-bench",
            "-m",
            "m.gguf",
            "-p",
            "0",
            "-n",
            "64",
            "-fa",
            "0,1",
            "-t",
            "2",
            "-r",
            "5",
            "-o",
            "json",
        ]
    ]


def test_edgellm_runs_with_the_calls_options_and_environment(monkeypatch):
    asked = []

    def output(command, environment):
        asked.append((command[4:], environment))
        return EDGELLM_BENCH

    monkeypatch.setattr(matrix, "output", output)
    name = rows.LARGE.name
    call = Call("edgellm", name, 1, ("--depth", "9"), (("EDGELLM_SIMD", "avx512"),))
    assert matrix.Runner({name: Path("m.gguf")}, [])(call)["tg64"] == 200.0
    tail = ["--depth", "9", "--threads", "1", "--repetitions", "3"]
    assert asked == [(["m.gguf", "--json", *tail], {"EDGELLM_SIMD": "avx512"})]


def test_the_pair_counts_with_the_slower_process(monkeypatch):
    asked = []

    def both(commands):
        asked.extend(commands)
        return [EDGELLM_BENCH, EDGELLM_BENCH.replace("200.0", "150.0")]

    monkeypatch.setattr(matrix, "outputs", both)
    (name,) = [subject for subject in rows.SUBJECTS if "Q4_0" in subject and "SmolLM2" in subject]
    runner = matrix.Runner({name: Path("m.gguf")}, ["taskset", "-c", "0,1"])
    assert runner(Call("pair", name, 2, ("-n", "64"))) == {"tg64": 150.0}
    assert len(asked) == 2
    assert asked[0][:3] == ["taskset", "-c", "0,1"]
    assert asked[0][-4:] == ["--threads", "2", "--repetitions", "12"]


def test_the_chart_draws_a_bar_as_long_as_what_was_reached_of_it():
    told = [figure([s], {"tg64": [100.0]}).report() for s in (100.0, 400.0, 900.0)]
    told.append(figure([1.0], {"tg64": [1.0]}, bar=None).report())
    root = ElementTree.fromstring(chart.bars_reached("a < b", told))
    widths = [float(r.get("width", "")) for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("x")]
    assert widths == [0.5 * chart.SCALE, 2 * chart.SCALE, 2 * chart.SCALE]  # beyond twice it ends

"""Bundles that drop small activations: which, at what cost, and that whoever loads one is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from edgellm import load
from edgellm.cli import pack as command
from edgellm.cli.app import main
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_verify import verify
from edgellm.model import threshold_note
from tests.e2e.tiny_model import CONTEXT, FFN, LAYERS

BOOK = (Path(__file__).parents[1] / "data" / "alice.txt").read_text()[2000:7000].rstrip()
THRESHOLD = ("--mode", "sparse-threshold", "--sparsity", "0.5")


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(BOOK)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny, book) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "half.edge"
    assert main(["pack", str(tiny), str(out), *THRESHOLD, "--text", str(book), "--threads", "1"]) == 0
    return out


def test_half_of_the_activations_are_below_the_thresholds(packed):
    bundle = open_checkpoint(packed).bundle
    assert bundle.mode == "sparse-threshold"
    assert len(bundle.thresholds) == LAYERS
    assert min(bundle.thresholds) > 0
    np.testing.assert_allclose(bundle.frequency.mean(axis=1), 0.5, atol=0.02)
    assert (np.diff(bundle.frequency, axis=1) <= 0).all()
    assert (np.sort(bundle.order) == np.arange(FFN)).all()
    assert bundle.manifest["calibration"]["text"] == "book.txt"
    assert bundle.manifest["calibration"]["sparsity"] == 0.5
    assert verify(packed) == []


def test_the_cost_is_that_on_the_last_quarter(json_of, packed, tiny, tmp_path):
    first, rest = command.split_text(BOOK)
    assert first + rest == BOOK
    assert first.endswith("\n")
    assert len(rest) == pytest.approx(len(BOOK) / 4, abs=100)
    (tmp_path / "rest.txt").write_text(rest)
    found = json.loads((packed / "manifest.json").read_text())["calibration"]["perplexity"]
    one, other = (
        json_of("perplexity", model, tmp_path / "rest.txt", "--ctx", CONTEXT, "--threads", 1)
        for model in (tiny, packed)
    )
    assert found["ctx"] == CONTEXT
    assert found["tokens"] == one["tokens"] == other["tokens"] > 100
    assert found["model"] == pytest.approx(one["perplexity"], rel=1e-5)
    assert found["bundle"] == pytest.approx(other["perplexity"], rel=1e-5)
    assert found["bundle"] != pytest.approx(found["model"], rel=1e-3)


def test_loading_it_tells_what_it_costs(edgellm, packed, caplog):
    cost = json.loads((packed / "manifest.json").read_text())["calibration"]["perplexity"]
    wanted = (
        "half.edge drops 50 % of FFN activations below calibrated thresholds: perplexity "
        f"{cost['bundle']:.1f} instead of {cost['model']:.1f} on book.txt."
    )
    with caplog.at_level(logging.WARNING, "edgellm"), load(packed, threads=1):
        assert [record.getMessage() for record in caplog.records] == [wanted]
    process = edgellm("run", packed, "hello", "-n", "2", "--threads", "1")
    assert (process.returncode, process.stderr) == (0, wanted + "\n")


@pytest.mark.parametrize("mode", ["sparse-exact", "sparse-predicted"])
def test_other_bundles_drop_nothing(shipped, tmp_path, caplog, mode):
    assert main(["pack", str(shipped), str(tmp_path / "m.edge"), "--mode", mode]) == 0
    with caplog.at_level(logging.WARNING, "edgellm"), load(tmp_path / "m.edge", threads=1):
        assert "drops" not in caplog.text


def test_a_short_rest_is_noted_and_the_cost_left_out(capsys, tiny, tmp_path, caplog):
    (tmp_path / "short.txt").write_text(BOOK[:800])
    arguments = [*THRESHOLD, "--text", str(tmp_path / "short.txt"), "--threads", "1", "--json"]
    assert main(["pack", str(tiny), str(tmp_path / "m.edge"), *arguments]) == 0
    output = capsys.readouterr()
    assert "short.txt: its last quarter has " in output.err
    assert f"it takes {2 * CONTEXT} to measure" in output.err
    assert json.loads(output.out)["perplexity"] is None
    assert "perplexity" not in open_checkpoint(tmp_path / "m.edge").bundle.manifest["calibration"]
    with caplog.at_level(logging.WARNING, "edgellm"), load(tmp_path / "m.edge", threads=1):
        assert [record.getMessage() for record in caplog.records] == [
            "m.edge drops 50 % of FFN activations below calibrated thresholds; what that costs was not "
            "measured."
        ]


@pytest.mark.parametrize(
    "calibration",
    [
        None,
        "words",
        {},
        {"sparsity": "0.5", "perplexity": [1]},
        {"sparsity": None, "perplexity": {"model": "1", "bundle": 2.0}},
    ],
)
def test_a_calibration_of_any_kind_is_a_note(calibration):
    note = threshold_note("m.edge", {"calibration": calibration})
    assert note.startswith("m.edge drops some FFN activations below")
    assert note.endswith("was not measured.")


def test_a_name_that_steers_the_terminal_is_not_printed():
    facts = {"sparsity": 0.25, "text": "a\x1b[2Jb", "perplexity": {"model": 2.0, "bundle": 2.5}}
    note = threshold_note("m.edge", {"calibration": facts})
    assert note.endswith("drops 25 % of FFN activations below calibrated thresholds: perplexity 2.5 instead "
                         "of 2.0 on a?[2Jb.")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one\ntwo\nthree\nfour\n", "one\ntwo\nthree\n"),
        ("one\n" + 16 * "t", "one\n" + 11 * "t"),  # nearly all of it is a line
        (7 * "o" + "\nt", 6 * "o"),
        ("abcd", "abc"),
        ("", ""),
    ],
)
def test_a_text_is_split_at_a_line(text, first):
    assert command.split_text(text) == (first, text[len(first) :])


def test_wrong_usage_is_one_sentence(capsys, tiny, book, tmp_path):
    text = ["--text", str(book)]
    for arguments, phrase in [
        (["--mode", "sparse-threshold"], "needs --sparsity"),
        (["--mode", "sparse-threshold", *text], "needs --sparsity"),
        (THRESHOLD, "a --text"),
        (["--sparsity", "0.5", *text], "--sparsity is for --mode sparse-threshold"),
        (["--mode", "stream", "--sparsity", "0.5"], "--sparsity is for --mode sparse-threshold"),
        (["--mode", "sparse-threshold", "--sparsity", "0", *text], "more than 0 and less than 1"),
        (["--mode", "sparse-threshold", "--sparsity", "1", *text], "more than 0 and less than 1"),
        (["--mode", "sparse-threshold", "--sparsity", "nan", *text], "more than 0 and less than 1"),
        ([*THRESHOLD, "--text", "none.txt"], "none.txt: cannot be read"),
    ]:
        assert main(["pack", str(tiny), str(tmp_path / "m.edge"), *arguments]) == 2
        output = capsys.readouterr()
        assert phrase in output.err
        assert output.err.count("\n") == 1
        assert output.out == ""
    assert not list(tmp_path.iterdir())

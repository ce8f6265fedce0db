"""The ladder, and what plan, bench and run say of a bundle."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from edgellm.cli import flash_bench, ladder
from edgellm.cli.app import main
from edgellm.executors.native import packed_file
from edgellm.executors.native.neurons import SparseFfn
from edgellm.flash.bars import ladder_chart
from edgellm.flash.calibrate import Firing
from edgellm.flash.probe import probe
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack


@pytest.fixture
def bundle(tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the model that ships, with a quarter of its neurons in memory; the flash is measured in a moment."""
    import numpy as np

    quick = probe(tmp_path, scratch_bytes=16 << 20, budget_s=0.5, rounds=1)
    monkeypatch.setattr(flash_bench, "flash_device", lambda: quick)
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    monkeypatch.setattr(packed_file, "pack_path", lambda path: tmp_path / "a.edgepack")
    monkeypatch.setattr(SparseFfn, "_most", lambda self, nbytes: 24)
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint(shipped)
    shape = (checkpoint.config.n_layers, checkpoint.config.ffn_size)
    fired = Firing(np.random.default_rng(0).uniform(0, 0.9, shape).astype(np.float32), 1)
    pack(
        checkpoint, tmp_path / "tiny.edge", mode="sparse-exact", order=fired.order, frequency=fired.frequency
    )
    return tmp_path / "tiny.edge"


def in_process(arguments: list[str]) -> dict:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["bench", *arguments]) == 0
    return json.loads(out.getvalue())


def test_every_rung_finds_the_same_tokens(bundle: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ladder, "_measured", in_process)
    (bundle.parent / "ids.json").write_text(json.dumps(list(range(300, 330))))
    arguments = ["bench", str(bundle), "-n", "8", "-r", "1", "--dram", "64GiB", "--threads", "2"]
    assert main([*arguments, "--tokens", "ids.json", "--ladder", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_tokens"]
    rungs = found["rungs"]
    assert list(rungs) == ["naive", "hybrid", "active", "window", "bundle", "merged"]
    read = {name: rung["io"]["bytes_per_token"] for name, rung in rungs.items()}
    requests = {name: rung["io"]["requests_per_token"] for name, rung in rungs.items()}
    assert read["naive"] > read["hybrid"] >= read["merged"]
    assert requests["window"] == pytest.approx(2 * requests["bundle"], rel=0.2)  # up and down apart
    assert requests["merged"] < requests["bundle"]
    for rung in rungs.values():
        latency = rung["latency_ms"]
        assert latency["io"] + latency["memory"] + latency["compute"] == pytest.approx(latency["mean"])
    assert Path(found["chart"]).read_text().startswith("<svg")
    assert main([*arguments, "--ladder"]) == 0
    assert "merged" in capsys.readouterr().out


def test_plan_and_bench_tell_of_neurons(bundle: Path, capsys) -> None:
    assert main(["plan", str(bundle), "--dram", "64GiB", "--ctx", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mode"] == "sparse-exact"
    assert found["neurons"]["slots_in_memory"] == 24
    assert 0 < found["neurons"]["expected_misses"] < found["neurons"]["expected_active"]
    assert found["predicted_tokens_per_second"] > 0
    assert main(["plan", str(bundle), "--dram", "64GiB", "--ctx", "64"]) == 0
    out = capsys.readouterr().out
    assert "slots of neurons" in out
    assert "widest window" in out
    assert found["neurons"]["widest_window"] >= 1
    arguments = ["bench", str(bundle), "-p", "0", "-n", "6", "-r", "1", "--dram", "64GiB", "--window", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "mode sparse-exact" in out
    assert "of the slots in memory" in out
    assert main([*arguments[:-1], "auto"]) == 0
    assert "mode sparse-exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "BUNDLE", "--ladder"], "give --dram too"),
        (["bench", "BUNDLE", "--dram", "1GiB", "--ladder", "-n", "0"], "give -n a number above 0"),
        (["bench", "BUNDLE", "--dram", "1GiB", "--rung", "top"], "There is no rung 'top'"),
        (["bench", "BUNDLE", "--tokens", "none.json"], "none.json: cannot be read"),
        (["bench", "BUNDLE", "--tokens", "text.json"], "a JSON list of token ids"),
        (["bench", "BUNDLE", "--tokens", "few.json"], "these tests need"),
        (["run", "MODEL", "hi", "--window", "3"], "has no neurons in slots"),
        (["run", "BUNDLE", "hi", "--window", "0"], "'0' is not a window"),
        (["run", "BUNDLE", "hi", "--window", "many"], "'many' is not a window"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bundle: Path, shipped: Path, capsys, arguments: list[str], message: str
) -> None:
    Path("text.json").write_text('{"a": 1}')
    Path("few.json").write_text("[1, 2]")
    names = {"BUNDLE": str(bundle), "MODEL": str(shipped)}
    assert main([names.get(word, word) for word in arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        ladder_chart("x", {})

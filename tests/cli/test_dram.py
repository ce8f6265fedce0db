"""A budget on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.cli import flash_bench
from edgellm.cli.app import main
from edgellm.executors.native import budgeted, packed_file
from edgellm.flash.probe import probe


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flash that is measured in a moment, and packs that are kept, but not in the cache."""
    quick = probe(tmp_path, scratch_bytes=16 << 20, budget_s=0.5, rounds=1)
    monkeypatch.setattr(flash_bench, "flash_device", lambda: quick)
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    monkeypatch.setattr(packed_file, "pack_path", lambda path: tmp_path / "a.edgepack")


def test_a_plan_says_where_the_memory_goes(device, shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(shipped), "--dram", "64GiB", "--ctx", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mode"] == "resident"
    assert found["dram_bytes"] == 64 << 30
    assert 3e6 < found["residency"]["pinned_bytes"] < 4e6
    assert found["residency"]["streamed_bytes"] == 0
    assert found["predicted_tokens_per_second"] > 0
    assert main(["plan", str(shipped), "--dram", "64GiB", "--ctx", "256"]) == 0
    assert "resident" in capsys.readouterr().out


def test_a_bench_within_a_budget_tells_the_flash(device, shipped: Path, capsys, monkeypatch) -> None:
    plan = budgeted.plan_residency
    half = lambda matrices, budget: plan(matrices, sum(m.nbytes for m in matrices) * 7 // 10)  # noqa: E731
    monkeypatch.setattr(budgeted, "plan_residency", half)
    arguments = ["bench", str(shipped), "-p", "8", "-n", "6", "-r", "2", "--dram", "64GiB", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    streamed = found["plan"]["residency"]["streamed_bytes"]
    assert found["plan"]["mode"] == "stream"
    assert streamed > 0
    # A read is a little longer than its tiles; an embedding's tile may have to be read too.
    assert streamed <= found["io"]["bytes_per_token"] < 1.5 * streamed
    assert 0 < found["io"]["hit_rate"]["p99"] <= found["io"]["hit_rate"]["mean"] < 1
    latency = found["latency_ms"]
    assert latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["io"] + latency["memory"] + latency["compute"] == pytest.approx(latency["mean"])
    assert found["predicted_tokens_per_second"] > 0
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "mode stream" in out
    assert "predicted" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "MODEL", "hi", "--dram", "20MiB"], "tiny.gguf does not run in 20 MiB: it needs at least"),
        (["run", "MODEL", "hi", "--dram", "much"], "'much' is not a size"),
        (
            ["run", "MODEL", "hi", "--dram", "1GiB", "--executor", "reference"],
            "no budget; use the native one",
        ),
        (["bench", "MODEL", "--dram", "1GiB", "--ops"], "leave it out with --dram"),
        (["plan", "MODEL", "--dram", "20MiB"], "it needs at least"),
    ],
)
def test_bad_input_is_one_sentence(device, shipped: Path, arguments, message: str, capsys) -> None:
    assert main([str(shipped) if one == "MODEL" else one for one in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.splitlines()[-1].startswith("edgellm: ")

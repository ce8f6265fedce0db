"""`edgellm flash probe` as a user runs it, on a small scratch file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgellm.cli.app import main
from edgellm.flash import probe as probing
from edgellm.flash.device import DeviceModel

SMALL = {"sizes": (4096, 65536, 1 << 20), "depths": (1, 4), "scratch_bytes": 8 << 20, "budget_s": 0.4}


@pytest.fixture(autouse=True)
def small(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "probe", functools.partial(probing.probe, **SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_the_tables_tell_what_was_measured_and_the_curves_are_drawn(tmp_path, capsys):
    assert main(["flash", "probe", "."]) == 0
    output = capsys.readouterr()
    model = probing.load(tmp_path)
    assert model is not None
    assert output.out.startswith(f"{model.device} ({model.file_system}), read by {model.engine}\n")
    speeds = [f"{model.cell(65536, depth).bytes_per_second / 1e6:.0f}" for depth in (1, 4)]
    assert ["64K", *speeds] in [line.split() for line in output.out.splitlines()]
    fit = model.fit(4)
    costs = ["4", f"{fit.request_seconds * 1e6:.1f}", "us", f"{fit.bytes_per_second / 1e6:.0f}", "MB/s"]
    assert costs in [line.split()[:5] for line in output.out.splitlines()]
    assert output.err.count("\n") == 1
    assert "curves in flash-probe.svg" in output.err
    assert str(probing.model_path(tmp_path)) in output.err
    lines = list(ElementTree.parse("flash-probe.svg").iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2 * (2 if model.direct else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "flash-probe.svg"]


def test_json_is_one_object_that_makes_the_same_model(tmp_path, capsys):
    assert main(["flash", "probe", str(tmp_path), "--json", "--svg", "disk.svg"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["svg"] == "disk.svg"
    assert Path("disk.svg").is_file()
    model = DeviceModel.from_dict({key: found[key] for key in probing.load(tmp_path).to_dict()})
    assert model == probing.load(tmp_path)
    depths = [(fit["direct"], fit["depth"]) for fit in found["fits"]]
    assert depths == [(mode, d) for mode in ([True, False] if model.direct else [False]) for d in (1, 4)]
    for entry in found["fits"]:
        fit = model.fit(entry["depth"], entry["direct"])
        assert (entry["gap_bytes"], entry["error"]) == (fit.gap_bytes, fit.error)


def test_a_measured_disk_is_not_measured_again_unless_asked(tmp_path, capsys):
    def dates(*options: str) -> list[float]:
        assert main(["flash", "probe", str(tmp_path), "--json", *options]) == 0
        return [cell["seconds"] for cell in json.loads(capsys.readouterr().out)["cells"]]

    first = dates()
    assert dates() == first
    assert dates("--again") != first


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["probe", "missing"], "missing: there is no such file or folder"),
        (["probe"], "Missing argument 'PATH'"),
        (["prob", "."], "No such command 'prob'"),
        ([], "Missing command"),
        (["probe", ".", "--svg", "missing/x.svg"], "missing/x.svg: cannot be written (no such file"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, phrase, capsys):
    assert main(["flash", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert phrase in output.err
    assert output.err.count("\n") == 1

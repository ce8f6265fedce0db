"""The commands pull, list and rm as a user meets them: standard output, standard error, exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.cli.app import main
from tests.hub.webserver import gguf_bytes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf_bytes(3_000))
    return path


def test_pull_prints_the_path_alone_on_standard_output(
    model: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", str(model)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache / 'models' / 'small' / 'small.gguf'}\n"
    assert err == f"Pulling small from {model}\n"


def test_pull_json_is_one_object(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(model), "--name", "mine", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["name"] == "mine"
    assert Path(answer["path"]).read_bytes() == model.read_bytes()
    assert answer["bytes"] == 3_000
    assert len(answer["sha256"]) == 64


def test_list_json_shows_pulled_partial_and_available(
    model: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pull", str(model)])
    (cache / "models" / "half").mkdir()
    (cache / "models" / "half" / "half.gguf.part").write_bytes(b"1234")
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    models = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert {name: m["status"] for name, m in models.items()} == {
        "half": "partial",
        "small": "pulled",
        "smollm2": "available",
        "tiny": "shipped",
    }
    assert Path(models["tiny"]["path"]).stat().st_size == models["tiny"]["bytes"]
    assert models["small"]["path"] == str(cache / "models" / "small" / "small.gguf")
    assert models["small"]["bytes"] == 3_000
    assert models["half"]["bytes"] == 4
    assert models["smollm2"]["bytes"] == 98362432


def test_list_shows_a_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pull", str(model)])
    capsys.readouterr()
    assert main(["list"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["small"][1:4] == ["pulled", "2.9", "KiB"]
    assert rows["smollm2"][1:5] == ["available", "93.8", "MiB", "Apache-2.0"]


def test_list_of_an_empty_cache_makes_no_folder(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert [m["status"] for m in json.loads(capsys.readouterr().out)] == ["available", "shipped"]
    assert not cache.exists()


def test_rm_json_says_what_went(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pull", str(model), "--json"])
    pulled = json.loads(capsys.readouterr().out)
    assert main(["rm", "small", "--json"]) == 0
    removed = json.loads(capsys.readouterr().out)
    assert (removed["path"], removed["sha256"]) == (pulled["path"], pulled["sha256"])
    assert removed["bytes"] >= 3_000
    assert not Path(pulled["path"]).exists()
    assert model.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "smolm2"], "did you mean smollm2?"),
        (["pull", "pypi:x"], "malformed source"),
        (["pull", "gone.gguf"], "no such model file"),
        (["rm", "nothing"], "not a pulled model"),
        (["rm", "/etc"], "outside the model cache"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["pull", "list", "rm"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"edgellm {command}" in capsys.readouterr().out.split("Example")[1]

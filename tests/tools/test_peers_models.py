"""Model files for the comparison are made once, and a program that fails is told in one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from tools.peers import genai, models, programs
from tools.random_model.shapes import SHAPES


@pytest.fixture
def quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands for llama-quantize: it copies the file, and counts its calls."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "llama-quantize"
    program.write_text('#!/bin/sh\necho "$@" >> "$0.log"\ncp "$2" "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("EDGELLM_PEER_DIR", str(folder))
    return program


def test_a_model_is_requantised_once(tmp_path, quantiser):
    source = tmp_path / "a.gguf"
    source.write_bytes(b"weights")
    made = [models.quantise(source, "Q4_0", tmp_path / "work") for _ in range(2)]
    assert made[0] == made[1] == tmp_path / "work" / "a.to-Q4_0.gguf"
    assert made[0].read_bytes() == b"weights"
    assert quantiser.with_name("llama-quantize.log").read_text().count("--allow-requantize") == 1
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["a.to-Q4_0.gguf"]


def test_a_quantisation_that_fails_leaves_no_model(tmp_path, quantiser):
    quantiser.write_text("#!/bin/sh\necho no such type >&2\nexit 3\n")
    with pytest.raises(EdgeError, match="ended with 3: no such type"):
        models.quantise(tmp_path / "a.gguf", "Q9", tmp_path / "work")
    assert list((tmp_path / "work").glob("*.gguf")) == []


def test_the_model_itself_is_taken_as_it_is(tmp_path):
    assert models.quantise(tmp_path / "a.gguf", "asis", tmp_path) == tmp_path / "a.gguf"


def test_a_random_model_is_made_once(own_cache, monkeypatch):
    first = models.random_model("tiny", "Q4_0")
    assert first.parent == own_cache / "peers" / "models"
    monkeypatch.setitem(SHAPES, "tiny", None)  # would fail if it were made again
    assert models.random_model("tiny", "Q4_0") == first


def test_programs_run_at_the_same_time(tmp_path):
    """Each needs the other to open its end of a pipe, and gives up after a while."""
    pipes = [tmp_path / "a", tmp_path / "b"]
    for pipe in pipes:
        os.mkfifo(pipe)
    head = "import signal,sys; signal.alarm(30); a,b=sys.argv[1:]"
    first = f"{head}; open(a,'w').write('x'); print(open(b).read())"
    second = f"{head}; print(open(a).read()); open(b,'w').write('y')"
    commands = [[sys.executable, "-c", code, *map(str, pipes)] for code in (first, second)]
    assert programs.outputs(commands) == ["y\n", "x\n"]


def test_the_program_that_failed_is_named_with_its_last_words():
    good = [sys.executable, "-c", "print(1)"]
    bad = [sys.executable, "-c", "import sys; print('a\\nb', file=sys.stderr); sys.exit(4)"]
    with pytest.raises(EdgeError, match="ended with 4: b"):
        programs.outputs([good, bad])


def test_openvino_that_cannot_be_fetched_is_an_error_and_is_tried_again(own_cache, monkeypatch):
    asked = []

    def fail(command, **more):
        asked.append(command)
        raise EdgeError("no wheel")

    monkeypatch.setattr(genai, "output", fail)
    for _ in range(2):
        with pytest.raises(EdgeError, match="no wheel"):
            genai.python()
    assert len(asked) == 2
    home = own_cache / "peers" / f"openvino-genai-{genai.VERSION}"
    home.mkdir(parents=True)
    (home / "ready").touch()
    assert genai.python() == home / "bin" / "python"


def test_no_module_of_this_project_can_stand_in_for_openvinos_own():
    command = genai.command(Path("python"), Path("m.gguf"), 2, 5)
    assert command == ["python", "-I", str(genai.CHILD), "m.gguf", "2", "5"]
    assert genai.CHILD.is_file()

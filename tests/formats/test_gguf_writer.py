"""The writer of GGUF files: read back by the gguf package; what stops it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.formats import gguf_writer
from edgellm.formats.gguf_writer import NewTensor, encode_value, write_gguf


@pytest.fixture
def one_tensor() -> list[NewTensor]:
    rows = np.arange(64, dtype="<f4").reshape(2, 32)
    pieces = lambda: (row.view(np.uint8) for row in rows)  # noqa: E731
    return [NewTensor("x", "F32", (2, 32), pieces)]


def test_what_is_written_is_read_by_the_gguf_package(tmp_path: Path, one_tensor: list[NewTensor]) -> None:
    keys = {
        "a.bool": True,
        "a.int": 7,
        "a.float": 0.5,
        "a.text": "caf\u00e9",
        "a.texts": ["", "\u2581"],
        "a.ints": np.array([-1, 2], np.int32),
        "a.floats": np.array([0.25], np.float32),
    }
    size = write_gguf(tmp_path / "x.gguf", keys, one_tensor)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert found == {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in keys.items()
    }
    assert reader.tensors[0].data.tolist() == np.arange(64.0).reshape(2, 32).tolist()
    assert size == (tmp_path / "x.gguf").stat().st_size
    assert encode_value(encode_value(7)) == encode_value(7)
    with pytest.raises(TypeError):
        encode_value([1, 2])


def test_too_small_a_disk_is_told_before_writing(
    tmp_path: Path, one_tensor: list[NewTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_writer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(EdgeError, match=r"has only 1\.0 kB free"):
        write_gguf(tmp_path / "x.gguf", {}, one_tensor)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_file_does_not_appear(
    tmp_path: Path, one_tensor: list[NewTensor], error: BaseException
) -> None:
    (tmp_path / "x.gguf").write_text("what was there")

    def stop(done: int, total: int) -> None:
        raise error

    with pytest.raises(EdgeError if isinstance(error, OSError) else KeyboardInterrupt):
        write_gguf(tmp_path / "x.gguf", {}, one_tensor, progress=stop)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


@pytest.mark.parametrize(("place", "sentence"), [("", "this is not a file"), ("no/x.gguf", "does not exist")])
def test_places_where_nothing_can_be_written(
    tmp_path: Path, one_tensor: list[NewTensor], place: str, sentence: str
) -> None:
    with pytest.raises(EdgeError, match=sentence):
        write_gguf(tmp_path / place, {}, one_tensor)

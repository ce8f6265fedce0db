"""Names, records, resolve and remove."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.hub import resolve
from edgellm.hub.catalogue import DEFAULT_MODEL, catalogue
from edgellm.hub.packs import MAGIC, pack_path, packs_dir
from edgellm.hub.paths import cache_root, models_dir
from edgellm.hub.pull import pull
from edgellm.hub.registry import Record, locked, model_names, pulled, read_record, remove
from edgellm.hub.sources import PypiSource, ShippedSource, parse_source
from edgellm.hub.store import sha256_file
from tests.hub.webserver import Page, Server, gguf_bytes, leftovers


@pytest.fixture
def small(tmp_path: Path) -> Record:
    source = tmp_path / "small.gguf"
    source.write_bytes(gguf_bytes(2_000))
    return pull(str(source))


def test_cache_root_follows_the_variable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == cache
    assert models_dir() == cache / "models"
    monkeypatch.setenv("EDGELLM_CACHE", "~/somewhere")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root() == Path("/home/me/somewhere")


def test_cache_root_without_the_variable_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.delenv("EDGELLM_CACHE")
    assert cache_root() == Path(platformdirs.user_cache_dir("edgellm", appauthor=False))


def test_catalogue_entries_are_complete() -> None:
    assert DEFAULT_MODEL in catalogue()
    for name, entry in catalogue().items():
        source = parse_source(entry.source)
        assert source is not None
        assert source.label == entry.source
        assert source.file_name == entry.file
        assert entry.name == name == name.lower()
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.size > 0
        assert entry.licence
        if isinstance(source, PypiSource):
            assert source.version is not None  # or the sum would change with the next release
        if isinstance(source, ShippedSource):
            assert (source.path.stat().st_size, sha256_file(source.path)) == (entry.size, entry.sha256)


def test_a_shipped_model_needs_no_pull(cache: Path, tmp_path: Path) -> None:
    path = resolve("tiny")
    assert path == resolve("edgellm:tiny.gguf") == resolve("Tiny", pull=True)
    assert path.stat().st_size == catalogue()["tiny"].size < 10e6
    assert not cache.exists()
    with pytest.raises(EdgeError, match="tiny is a part of edgellm itself"):
        remove("tiny")
    assert pull("tiny").sha256 == catalogue()["tiny"].sha256  # a copy, for who wants one
    assert resolve("tiny") == models_dir() / "tiny" / "tiny.gguf"
    assert remove("tiny")[0] == "tiny"
    assert resolve("tiny") == path


@pytest.mark.parametrize(
    "text", ["edgellm:", "edgellm:../hub/pull.py", "edgellm:gone.gguf", "edgellm:/etc/passwd"]
)
def test_nothing_else_comes_with_edgellm(text: str) -> None:
    with pytest.raises(EdgeError, match="no such file comes with edgellm"):
        resolve(text)


def test_default_model_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(EdgeError, match=r"run `edgellm pull smollm2`"):
        resolve()


def test_resolve_finds_names_sources_and_paths(
    small: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("small") == resolve("SMALL") == small.path
    assert resolve(tmp_path / "small.gguf") == tmp_path / "small.gguf"
    assert resolve(str(tmp_path / "small.gguf")) == tmp_path / "small.gguf"
    monkeypatch.chdir(tmp_path)
    assert resolve("./small.gguf") == resolve("small.gguf") == Path("small.gguf")


def test_plain_name_means_the_model_before_a_folder_of_that_name(
    small: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "other").mkdir()
    assert resolve("small") == small.path
    assert resolve("./small") == Path("small")
    assert resolve("other") == Path("other")


def test_resolve_of_a_pulled_source_fetches_nothing(server: Server) -> None:
    server.pages["/m.gguf"] = Page(gguf_bytes(1000))
    url = server.url("/m.gguf")
    with pytest.raises(EdgeError, match="has not been pulled yet"):
        resolve(url)
    assert server.requests == []
    path = resolve(url, pull=True)
    assert resolve(url) == path
    assert len(server.requests) == 1


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(EdgeError, match=r"did you mean smollm2\?"):
        pull("smolm2")
    with pytest.raises(EdgeError, match=r"did you mean smollm2\?"):
        resolve("smollm")
    with pytest.raises(EdgeError, match=r"known names: smollm2, tiny\."):
        resolve("zzzzzz")


def test_missing_path_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no such model file or folder"):
        resolve(tmp_path / "gone")
    with pytest.raises(EdgeError, match="no such model file or folder"):
        resolve("gone.gguf", pull=True)


def test_name_that_is_taken_by_another_source(small: Record, tmp_path: Path) -> None:
    other = tmp_path / "sub" / "small.gguf"
    other.parent.mkdir()
    other.write_bytes(gguf_bytes(3_000, seed=1))
    with pytest.raises(EdgeError, match=r"already pulled from .*small\.gguf; replace it with --force"):
        pull(str(other))
    assert pull(str(other), name="Small-2").name == "small-2"
    assert pull(str(other), force=True).bytes == 3_000
    assert [r.name for r in pulled()] == ["small", "small-2"]


def test_pulled_name_pulls_from_its_own_source_again(small: Record, tmp_path: Path) -> None:
    assert pull("small") == small
    (tmp_path / "small.gguf").write_bytes(gguf_bytes(4_000, seed=1))
    assert pull("small", force=True).bytes == 4_000


def test_checksum_must_have_the_form_of_one(small: Record) -> None:
    with pytest.raises(EdgeError, match="not a sha256"):
        pull("small", sha256="abc")


def test_pulled_model_with_another_checksum_is_not_returned(small: Record) -> None:
    with pytest.raises(EdgeError, match="already pulled"):
        pull("small", sha256="0" * 64)


def test_model_deleted_by_hand_is_pulled_again(small: Record, tmp_path: Path) -> None:
    small.path.unlink()
    assert read_record("small") is None
    assert pulled() == []
    assert pull(str(tmp_path / "small.gguf")).path.exists()


def test_model_truncated_by_hand_does_not_count(small: Record) -> None:
    small.path.write_bytes(b"GGUF")
    assert read_record("small") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"name": "small"}', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
)
def test_damaged_record_does_not_count(small: Record, text: str) -> None:
    (small.path.parent / "record.json").write_bytes(text.encode("latin-1"))
    assert pulled() == []
    assert model_names() == ["small"]
    assert remove("small")[0] == "small"
    assert model_names() == []


def test_record_cannot_point_out_of_the_cache(small: Record, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"x" * small.bytes)
    record = small.path.parent / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"file": f"../../../{outside.name}"}))
    assert read_record("small") is None


def test_remove_frees_the_folder(small: Record, cache: Path) -> None:
    name, freed = remove("Small")
    assert name == "small"
    assert freed >= small.bytes
    assert leftovers(cache) == []
    with pytest.raises(EdgeError, match=r"small is not a pulled model \(pulled: none\)"):
        remove("small")


def test_remove_takes_the_path_that_pull_printed(small: Record) -> None:
    assert remove(str(small.path))[0] == "small"


def test_remove_takes_the_packed_weights_along(small: Record, tmp_path: Path) -> None:
    packs_dir().mkdir()
    mine, other = pack_path(small.path), pack_path(tmp_path / "small.gguf")
    for pack, source in ((mine, small.path), (other, tmp_path / "small.gguf")):
        pack.write_bytes(MAGIC + json.dumps({"files": [{"path": str(source)}]}).encode() + b"\n" + bytes(500))
    assert mine != other
    assert remove("small")[1] >= small.bytes + 500
    assert list(packs_dir().iterdir()) == [other]


@pytest.mark.parametrize("name", ["../..", "..", ".", "/", "~", "./small.gguf", "../outside", ".locks", ""])
def test_remove_refuses_what_is_not_in_the_cache(small: Record, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EdgeError):
        remove(name)
    with pytest.raises(EdgeError):
        remove(str(models_dir() / name))
    assert sorted(tmp_path.rglob("*")) == before


def test_remove_follows_no_link_out_of_the_cache(small: Record, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (models_dir() / "linked").symlink_to(outside)
    with pytest.raises(EdgeError, match="not a pulled model"):
        remove("linked")
    (small.path.parent / "inner").symlink_to(outside)
    remove("small")
    assert (outside / "precious").exists()


def test_remove_waits_for_no_pull(small: Record) -> None:
    with locked("small"), pytest.raises(EdgeError, match="being pulled by another process"):
        remove("small")
    assert small.path.exists()


def test_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "small.gguf").write_bytes(gguf_bytes(100))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(EdgeError, match="cannot write the model"):
        pull(str(tmp_path / "small.gguf"))
    with pytest.raises(EdgeError, match="cannot read the model cache"):
        pulled()

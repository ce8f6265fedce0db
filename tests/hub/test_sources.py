"""Sources: what parses, to what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.hub.sources import (
    MODEL_NAME,
    HubSource,
    LocalSource,
    PypiSource,
    UrlSource,
    check_model_name,
    model_name_for,
    parse_source,
)


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("pypi:a-b==1.0/pkg/M.Q4.gguf", PypiSource("a-b", "1.0", "pkg/M.Q4.gguf"), "m.q4"),
        ("pypi:a/m.gguf", PypiSource("a", None, "m.gguf"), "m"),
        ("hf:Own/Re.po", HubSource("Own/Re.po", None, None), "re.po"),
        ("hf:o/r/sub/F.gguf", HubSource("o/r", None, "sub/F.gguf"), "f"),
        ("hf:o/r@v1.2/F.gguf", HubSource("o/r", "v1.2", "F.gguf"), "f"),
        (
            "https://h/a/My%20Model.gguf?download=1",
            UrlSource("https://h/a/My%20Model.gguf?download=1"),
            "my-model",
        ),
        ("http://127.0.0.1:80/m.gguf", UrlSource("http://127.0.0.1:80/m.gguf"), "m"),
        ("http://[::1]/m.gguf", UrlSource("http://[::1]/m.gguf"), "m"),
        ("/x/y.gguf", LocalSource(Path("/x/y.gguf")), "y"),
        ("/x/y.edge", LocalSource(Path("/x/y.edge")), "y"),
    ],
)
def test_source_parses_and_its_label_parses_back(text: str, source: object, name: str) -> None:
    parsed = parse_source(text)
    assert parsed == source
    assert parsed is not None
    assert model_name_for(parsed) == name
    again = parse_source(parsed.label)
    assert again is not None
    assert again.label == parsed.label


@pytest.mark.parametrize("text", ["smollm2", "SmolLM2", "a-b_c.1"])
def test_plain_names_are_no_sources(text: str) -> None:
    assert parse_source(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a model name"),
        ("a\0b", "not a model name"),
        ("pypi:", "malformed"),
        ("pypi:name", "malformed"),
        ("pypi:-r/x.gguf", "malformed"),
        ("pypi:name==1 --index-url=x/m.gguf", "malformed"),
        ("pypi:a/../m.gguf", "plain path inside"),
        ("pypi:a//etc/m.gguf", "plain path inside"),
        ("pypi:a/b\\..\\m.gguf", "plain path inside"),
        ("hf:onlyowner", "malformed"),
        ("hf:o/r/../../x.gguf", "plain path inside"),
        ("hf:../r/x.gguf", "malformed"),
        ("https:///m.gguf", "malformed"),
        ("https://h/", "malformed"),
        ("https://h:99999/m.gguf", "malformed"),
        ("https://h/m .gguf", "malformed"),
        ("ftp://h/m.gguf", "malformed"),
        ("file:///etc/passwd", "malformed"),
        ("http://example.org/m.gguf", "plain http"),
        ("http://localhost.example.org/m.gguf", "plain http"),
        ("https://u:secret@h/m.gguf", "user name or password"),
        ("https://h/m-00001-of-00002.gguf", "split GGUF"),
        ("hf:o/r/m-00001-of-00002.gguf", "split GGUF"),
    ],
)
def test_bad_sources_get_one_sentence(text: str, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as error:
        parse_source(text)
    assert "secret" not in str(error.value)


def test_label_keeps_no_query() -> None:
    source = parse_source("https://h/m.gguf?token=secret#part")
    assert source is not None
    assert source.label == "https://h/m.gguf"


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../x", ".hidden", "a b", "x.gguf", "x.edge", "a" * 200, "né"]
)
def test_names_that_could_leave_the_cache_are_refused(name: str) -> None:
    with pytest.raises(EdgeError, match="cannot name a model"):
        check_model_name(name)


@given(st.text(max_size=60))
def test_any_text_gives_a_source_none_or_an_edge_error(text: str) -> None:
    try:
        source = parse_source(text)
        name = model_name_for(source) if source is not None else None
    except EdgeError:
        return
    assert name is None or MODEL_NAME.fullmatch(name)


@given(st.sampled_from(["pypi:a/", "hf:a/b/", "https://h/"]), st.text(max_size=40))
def test_file_names_never_climb_out_of_their_folder(prefix: str, rest: str) -> None:
    try:
        source = parse_source(prefix + rest)
    except EdgeError:
        return
    assert source is not None
    assert source.file_name not in ("", ".", "..")
    assert not {"/", "\\", "\0"} & set(source.file_name)

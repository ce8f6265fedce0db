"""Streaming decode: the parts join to the whole, and no part ends within a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgellm.formats.checkpoint import open_checkpoint
from edgellm.text.detokenize import StreamDecoder
from edgellm.text.from_gguf import tokenizer_from_gguf
from edgellm.text.tokenizer import Tokenizer, load_tokenizer

FAMILY = "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 漢字"
SPACE = "\u2581"


@pytest.fixture(scope="module")
def byte_level(smollm2: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(smollm2))


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """A SentencePiece vocabulary that spells almost everything in bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), SPACE, "a", f"{SPACE}a", "漢"]
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
    }
    return tokenizer_from_gguf(data, Path("model.gguf"))


def parts(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, **options)
    return [*(decoder.push(id) for id in ids), decoder.flush()]


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip in (True, False):
        for go_on in (True, False):
            whole = tokenizer.decode(ids, skip, continuation=go_on)
            assert "".join(parts(tokenizer, ids, skip_special=skip, continuation=go_on)) == whole


def check_text(tokenizer: Tokenizer, text: str) -> None:
    got = parts(tokenizer, tokenizer.encode(text, special=False, bos=False))
    assert "".join(got) == text
    assert got[-1] == ""
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in got)


@given(st.lists(st.integers(0, 49151), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_ids_byte_level(byte_level: Tokenizer, ids: list[int]) -> None:
    check(byte_level, ids)


@given(st.lists(st.integers(0, 262), max_size=40))
@example([259, 3 + 0xF0, 3 + 0x9F, 259])
@settings(max_examples=300, deadline=None)
def test_any_ids_byte_fallback(byte_fallback: Tokenizer, ids: list[int]) -> None:
    check(byte_fallback, ids)


# SmolLM2 has no tokens for some control characters and for planes that nothing uses
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], max_codepoint=0x3FFFF)))
@example(FAMILY)
@settings(max_examples=200, deadline=None)
def test_any_text_byte_level(byte_level: Tokenizer, text: str) -> None:
    check_text(byte_level, text)


@given(st.text())
@example(FAMILY)
@settings(max_examples=200, deadline=None)
def test_any_text_byte_fallback(byte_fallback: Tokenizer, text: str) -> None:
    check_text(byte_fallback, text)


def test_a_character_appears_with_its_last_byte(byte_fallback: Tokenizer) -> None:
    ids = [3 + b for b in "é😀".encode()]
    assert parts(byte_fallback, ids) == ["", "é", "", "", "", "😀", ""]


def test_an_unfinished_character_comes_out_at_the_end(byte_fallback: Tokenizer) -> None:
    assert parts(byte_fallback, [260, 3 + 0xF0, 3 + 0x9F]) == ["a", "", "", "\ufffd"]


def test_only_the_first_space_of_a_text_is_taken_away(byte_fallback: Tokenizer) -> None:
    assert parts(byte_fallback, [1, 261, 261]) == ["", "a", " a", ""]
    assert parts(byte_fallback, [261, 261], continuation=True) == [" a", " a", ""]

"""A folder's tokenizer as GGUF metadata: it must give the ids that llama.cpp gives for the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.text.from_gguf import BYTE, CONTROL, UNKNOWN, UNUSED, tokenizer_from_gguf
from edgellm.text.to_gguf import tokenizer_keys
from tests.formats.tiny_bitnet import VOCABULARIES, add_tokenizer, write_bitnet

GOLDENS = json.loads(VOCABULARIES.read_text(encoding="utf-8"))
PADDING = 3


def folder(path: Path, name: str, spare: int = PADDING) -> Path:
    """A model with `spare` more rows in its embedding than the vocabulary has tokens."""
    return write_bitnet(path, vocab=add_tokenizer(path, name) + spare)


def keys_of(path: Path) -> dict[str, Any]:
    return tokenizer_keys(open_checkpoint(path))


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "gpt-2", "starcoder"])
def test_the_ids_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    golden = GOLDENS[name]
    keys = keys_of(folder(tmp_path, name))
    tokenizer = tokenizer_from_gguf(keys, tmp_path)
    for text, ids in golden["cases"]:
        assert tokenizer.encode(text, special=False, bos=False) == ids, text
    tokens = golden["metadata"]["tokenizer.ggml.tokens"]
    assert keys["tokenizer.ggml.tokens"] == [*tokens, *(f"[PAD{len(tokens) + i}]" for i in range(PADDING))]
    assert keys["tokenizer.ggml.model"] == golden["metadata"]["tokenizer.ggml.model"]
    assert keys["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    for key in ("bos_token_id", "eos_token_id"):
        assert keys[f"tokenizer.ggml.{key}"] == golden["metadata"][f"tokenizer.ggml.{key}"]


def test_types_and_names(tmp_path: Path) -> None:
    keys = keys_of(folder(tmp_path, "llama-spm"))
    golden = GOLDENS["llama-spm"]["metadata"]["tokenizer.ggml.token_type"]
    types = keys["tokenizer.ggml.token_type"].tolist()
    assert types == [*golden, *[UNUSED] * PADDING]
    assert {UNKNOWN, CONTROL, BYTE} <= set(types)
    assert (keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.unknown_token_id"]) == ("default", 0)
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (True, False)


@pytest.mark.parametrize(
    ("name", "pre"), [("llama-bpe", "llama-bpe"), ("qwen2", "qwen2"), ("gpt-2", "gpt-2")]
)
def test_the_pre_tokenizer_is_known_by_its_expressions(tmp_path: Path, name: str, pre: str) -> None:
    assert keys_of(folder(tmp_path, name))["tokenizer.ggml.pre"] == pre


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama-bpe") / "tokenizer.json"
    state = json.loads(path.read_text())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    path.write_text(json.dumps(state))
    with pytest.raises(EdgeError, match="GGUF has no name for the way"):
        keys_of(tmp_path)


def test_a_tokenizer_that_would_encode_differently_is_refused(tmp_path: Path) -> None:
    """GGUF cannot say that text is put into lower case."""
    path = folder(tmp_path, "llama-spm") / "tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
    path.write_text(json.dumps(state))
    with pytest.raises(EdgeError, match="would give other tokens"):
        keys_of(tmp_path)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"has the token \d+, but the embedding has only"):
        keys_of(folder(tmp_path, "llama-spm", spare=-1))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"has no tokenizer\.json"):
        keys_of(write_bitnet(tmp_path))

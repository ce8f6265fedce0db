"""Ids against llama.cpp and the models' own tokenizers; decoding; what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.text.from_gguf import tokenizer_from_gguf
from edgellm.text.pretokenizers import PRE_TOKENIZERS
from edgellm.text.tokenizer import Tokenizer, load_tokenizer

DATA = Path(__file__).parent / "data"
VOCABULARIES = json.loads((DATA / "vocabularies.json").read_text(encoding="utf-8"))
SMOLLM2 = json.loads((DATA / "smollm2.json").read_text(encoding="utf-8"))
SPACE = "\u2581"
FILE = Path("model.gguf")


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(smollm2))


# ---- goldens


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_of_the_models_own_tokenizers(name: str) -> None:
    golden = VOCABULARIES[name]
    tokenizer = tokenizer_from_gguf(golden["metadata"], FILE)
    for text, ids in golden["cases"]:
        assert tokenizer.encode(text, special=False, bos=False) == ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_over_the_whole_vocabulary_files(name: str) -> None:
    folder = os.environ.get("EDGELLM_PEER_SOURCE")
    if not folder:
        pytest.skip("EDGELLM_PEER_SOURCE names no llama.cpp source folder")
    from gguf import GGUFReader

    path = Path(folder) / "models" / f"ggml-vocab-{name}.gguf"
    fields = GGUFReader(path).fields.items()
    tokenizer = tokenizer_from_gguf({key: field.contents() for key, field in fields}, path)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=False):
        ids = [int(id) for id in line.split()]
        assert tokenizer.encode(text, special=False, bos=False) == ids, text


def test_smollm2_ids_of_llama_cpp(tokenizer: Tokenizer) -> None:
    for case in SMOLLM2:
        ids = tokenizer.encode(case["text"], special=case["special"])
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids, skip_special=False) == case["text"]


def test_smollm2_tokens_with_a_meaning(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert not tokenizer.add_bos
    ends = {tokenizer.id_to_token(id) for id in tokenizer.end_ids}
    assert ends == {"<|im_end|>", "<|endoftext|>", "<reponame>"}
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "ab"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b", special=False)) == "a<|im_end|>b"


def test_smollm2_leaves_out_the_bytes_that_it_has_no_token_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\x04b\x13c")) == "abc"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], max_codepoint=0x3FFFF)))
@settings(max_examples=200, deadline=None)
def test_smollm2_decodes_what_it_encoded(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


# ---- SentencePiece: against a merge loop written from its description


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """Join the neighbours whose union scores highest, leftmost first, until no union is a token."""
    parts = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def spm(tokens: dict[str, float], **extra: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary: <unk>, <s>, </s>, the 256 bytes, then `tokens` with scores."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *tokens]
    types = [2, 3, 3, *[6] * 256, *[1] * len(tokens)]
    scores = np.array([0.0] * 259 + list(tokens.values()), np.float32)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, float]:
    longer = draw(st.lists(st.text(f"abc{SPACE}", min_size=2, max_size=5), unique=True, max_size=30))
    ranks = draw(st.permutations(range(len(longer))))
    return {
        **dict.fromkeys(f"abc{SPACE}", -1000.0),
        **{t: -float(r) for t, r in zip(longer, ranks, strict=True)},
    }


@given(vocabularies(), st.text("abc ", max_size=30))
@settings(max_examples=300, deadline=None)
def test_sentencepiece_merges_by_score(scores: dict[str, float], text: str) -> None:
    tokenizer = tokenizer_from_gguf(spm(scores), FILE)
    pieces = [tokenizer.id_to_token(id) for id in tokenizer.encode(text, bos=False)]
    assert pieces == sentencepiece(text, scores)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_falls_back_to_bytes_and_puts_the_start_token_first() -> None:
    tokenizer = tokenizer_from_gguf(spm({SPACE: -1.0, "a": -2.0}), FILE)
    first = tokenizer.encode("é a")
    assert first == [1, 259, 3 + 0xC3, 3 + 0xA9, 259, 260]
    assert tokenizer.decode(first) == "é a"
    assert tokenizer.decode(first, continuation=True) == " é a"
    assert tokenizer.decode(first[:3], skip_special=False) == "<s> \ufffd"
    assert tokenizer.end_ids == {2}


def test_sentencepiece_without_added_space_or_start_token() -> None:
    data = spm({SPACE: -1.0, "a": -2.0}, add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    tokenizer = tokenizer_from_gguf(data, FILE)
    assert tokenizer.encode(" a") == [259, 260, 2]
    assert tokenizer.encode(" a", bos=True) == [1, 259, 260]
    assert tokenizer.decode([259, 260]) == " a"


def test_control_tokens_are_not_made_of_plain_text() -> None:
    tokens = {SPACE: -1.0, "<": -2.0, "s": -3.0, ">": -4.0, "<s": -5.0}
    tokenizer = tokenizer_from_gguf(spm(tokens, add_space_prefix=False), FILE)
    assert tokenizer.encode("<s>", special=True, bos=False) == [1]
    assert tokenizer.encode("<s>", special=False, bos=False) == [263, 262]


# ---- byte-level BPE, small


def bpe(**changes: Any) -> dict[str, Any]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    data: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*letters, "he", "ll", "hell", "<|im_end|>", "<|user|>"],
        "token_type": [*[1] * (len(letters) + 3), 1, 4],
        "merges": ["h e", "l l", "he ll"],
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in data.items() if value is not None}


def test_an_end_token_of_the_wrong_type_still_ends() -> None:
    tokenizer = tokenizer_from_gguf(bpe(), FILE)
    end, user = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|user|>")
    assert tokenizer.end_ids == {end}
    assert tokenizer.encode("<|user|>hell<|im_end|>") == [user, tokenizer.token_to_id("hell"), end]
    # a user-defined token is cut out even where control tokens are plain text, and it is shown
    assert tokenizer.encode("<|user|>", special=False) == [user]
    assert tokenizer.decode([user, end]) == "<|user|>"


def test_ids_outside_the_vocabulary_stand_for_nothing() -> None:
    tokenizer = tokenizer_from_gguf(bpe(), FILE)
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None
    assert tokenizer.id_to_token(-1) is None
    assert tokenizer.decode([-1, tokenizer.vocab_size, 1 << 40]) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"model": "bert"}, "unknown tokenizer model 'bert'"),
        ({"pre": "brand-new"}, r"unknown pre-tokenizer 'brand-new'; known are .*qwen2.*smollm"),
        ({"pre": 7}, "should be text"),
        ({"tokens": None}, "holds no vocabulary"),
        ({"tokens": []}, "holds no vocabulary"),
        ({"tokens": ["a", 1], "token_type": None}, "should be a list of text"),
        ({"tokens": ["a", "b", "a"], "token_type": None, "merges": ["a b"]}, "lists the token 'a' twice"),
        ({"merges": None}, "has no merges"),
        ({"merges": []}, "has no merges"),
        ({"merges": ["h e", "hell"]}, "merge 'hell' is not two tokens"),
        ({"merges": ["h e", "a b c"]}, "merge 'a b c' is not two tokens"),
        ({"merges": ["h e", "he x"]}, "merge 'he x' makes or names an unknown token"),
        ({"merges": ["h e", "he yy"]}, "merge 'he yy' makes or names an unknown token"),
        ({"token_type": [1, 1]}, "token_type has 2 entries for"),
        ({"token_type": "abc"}, "token_type should be a list of numbers"),
        ({"eos_token_id": "2"}, "eos_token_id is 2, but the vocabulary has"),
        ({"eos_token_id": 99999}, "eos_token_id is 99999, but the vocabulary has"),
        ({"add_bos_token": True}, "adds start tokens but the file names none"),
        ({"model": "llama"}, "has no scores"),
        ({"model": "llama", "scores": ["a", "b"]}, "scores should be a list of numbers"),
        ({"model": "llama", "scores": [1.0]}, "scores has 1 entries for"),
    ],
)
def test_a_damaged_vocabulary_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        tokenizer_from_gguf(bpe(**changes), FILE)
    text = str(caught.value)
    assert text.startswith("model.gguf: ")
    assert text.endswith(".")
    assert "\n" not in text


def test_a_missing_pre_tokenizer_name_is_the_default_and_said(caplog: pytest.LogCaptureFixture) -> None:
    unnamed = tokenizer_from_gguf(bpe(pre=None), FILE)
    assert "does not name its pre-tokenizer" in caplog.text
    named = tokenizer_from_gguf(bpe(pre="default"), FILE)
    text = "hell, 12345 hell!!"
    assert unnamed.encode(text) == named.encode(text)


def test_a_start_token_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(EdgeError, match="no start token"):
        tokenizer_from_gguf(bpe(), FILE).encode("a", bos=True)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(EdgeError, match="not valid UTF-8"):
        tokenizer_from_gguf(bpe(), FILE).encode("a\udcff")


@pytest.mark.parametrize("name", [name for name, pre in PRE_TOKENIZERS.items() if pre.byte_level])
def test_every_pre_tokenizer_keeps_every_character(name: str) -> None:
    text = "It's 12345 O'Neil\t\n  ÄÖ é e\u0301 漢字かな 한국 👩‍👩‍👧 <sentinel:3> {x}\r\n\r\n  end  "
    tokenizer = tokenizer_from_gguf(bpe(pre=name, add_bos_token=False), FILE)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# ---- a Hugging Face folder


@dataclass
class Folder:
    """What load_tokenizer reads of a checkpoint."""

    path: Path
    metadata: dict[str, Any]
    format: str = "hf"


def save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Folder:
    tokenizer._backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Folder(folder, {"config": {}, "generation_config": {}})


def load(folder: Folder) -> Tokenizer:
    return load_tokenizer(folder)  # type: ignore[arg-type]


def test_hf_folder_gives_the_ids_of_the_gguf_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from tokenizers import decoders

    tokenizer._backend.decoder = decoders.ByteLevel()
    folder = save(tmp_path, tokenizer, bos_token={"content": "<|im_start|>"}, eos_token="<|im_end|>")
    folder.metadata = {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [2, 0]}}
    hf = load(folder)
    for case in SMOLLM2:
        assert hf.encode(case["text"], special=case["special"]) == case["ids"]
        assert hf.decode(case["ids"], skip_special=False) == case["text"]
        shown = hf._backend.decode(case["ids"], skip_special_tokens=True)
        assert hf.decode(case["ids"]) == shown
    assert (hf.bos_id, hf.eos_id, hf.vocab_size, hf.add_bos) == (1, 2, 49152, False)
    assert {0, 2} <= hf.end_ids <= tokenizer.end_ids


def sentencepiece_folder(tmp_path: Path, **settings: Any) -> Folder:
    from tokenizers import decoders, processors

    tokenizer = tokenizer_from_gguf(spm({SPACE: -1.0, "a": -2.0, f"{SPACE}a": -3.0}), FILE)
    steps = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer._backend.decoder = decoders.Sequence(steps)
    tokenizer._backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return save(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>", **settings)


def test_hf_post_processor_says_whether_the_start_token_is_added(tmp_path: Path) -> None:
    tokenizer = load(sentencepiece_folder(tmp_path))
    ids = tokenizer.encode("a é")
    assert ids == tokenizer._backend.encode("a é").ids
    assert ids[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(ids) == tokenizer._backend.decode(ids) == "a é"


def test_hf_settings_overrule_the_post_processor(tmp_path: Path) -> None:
    tokenizer = load(sentencepiece_folder(tmp_path, add_bos_token=False, add_eos_token=True))
    assert tokenizer.encode("a") == [261, 2]


def test_hf_end_tokens_of_every_file_count(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path)
    folder.metadata = {"config": {"eos_token_id": 259}, "generation_config": {"eos_token_id": [260]}}
    assert load(folder).end_ids == {2, 259, 260}


def damage(folder: Path) -> Iterator[tuple[str, str]]:
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<nowhere>"}')
    yield "the bos_token '<nowhere>' is not in the vocabulary", "tokenizer.json"
    (folder / "tokenizer_config.json").write_text("[1]")
    yield "should hold one JSON object", "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text("{")
    yield "not readable as JSON", "tokenizer_config.json"
    (folder / "tokenizer.json").write_text("{}")
    yield "not a tokenizer that can be read", "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    yield "has no tokenizer.json", str(folder)


def test_a_damaged_hf_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path)
    for message, place in damage(tmp_path):
        with pytest.raises(EdgeError, match=message) as caught:
            load(folder)
        assert place in str(caught.value)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    from tokenizers import decoders

    tokenizer = tokenizer_from_gguf(bpe(), FILE)
    tokenizer._backend.decoder = decoders.WordPiece()
    with pytest.raises(EdgeError, match=r"WordPiece.*neither byte-level nor SentencePiece"):
        load(save(tmp_path, tokenizer))

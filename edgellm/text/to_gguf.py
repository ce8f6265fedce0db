"""A Hugging Face folder's tokenizer as the `tokenizer.*` metadata of a GGUF file.

The inverse of from_gguf.py: byte-level BPE becomes `gpt2` with the name of its pre-tokenizer, SentencePiece
BPE (Llama 2) becomes `llama` with scores. What was made is read back and must encode a text of many scripts
as the folder's tokenizer does.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.text.from_gguf import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_from_gguf
from edgellm.text.from_hf import read_json, token_text
from edgellm.text.pretokenizers import PRE_TOKENIZERS
from edgellm.text.template import find_template
from edgellm.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_PROBE = (
    "Hello  world! It's 12345 o'clock,\tyou'LL see:\n\n  def f(x):\r\n    return x**2 - 3.14e-10  # "
    "caf\u00e9 \u00c4\u00d6 e\u0301 \u6f22\u5b57\u304b\u306a \ud55c\uad6d \u0440\u0443\u0441 "
    "\u0639\u0631\u0628 \U0001f468\u200d\U0001f469\u200d\U0001f467 {[(<a|b>)]} \u2581 _end_   "
)


def tokenizer_keys(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys for a GGUF file of as many tokens as the embedding of `checkpoint`, a Hugging Face folder.

    Raises EdgeError for a folder without tokenizer.json, and for a tokenizer that GGUF cannot express.
    """
    tokenizer = load_tokenizer(checkpoint)
    path = checkpoint.path / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    model, parts = raw["model"], _steps(raw.get("decoder"), "decoders")
    if model["type"] != "BPE":
        raise EdgeError(f"{path}: a tokenizer of the kind {model['type']} cannot go into this GGUF file.")
    tokens, types = _tokens(checkpoint, tokenizer, raw)
    keys: dict[str, Any] = {"tokens": tokens, "token_type": np.array(types, np.int32)}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if any(part["type"] == "ByteLevel" for part in parts):
        keys |= {"model": "gpt2", "pre": _pre_name(checkpoint, raw), "merges": [" ".join(m) for m in merges]}
    else:
        keys |= {"model": "llama", "pre": "default", "scores": _scores(tokens, merges)}
    keys |= _special(checkpoint, tokenizer, model)
    return _proven(checkpoint, tokenizer, keys)


def _tokens(
    checkpoint: Checkpoint, tokenizer: Tokenizer, raw: Mapping[str, Any]
) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens; ids that the tokenizer leaves out get a name of their own."""
    count, model = checkpoint.config.vocab_size, raw["model"]
    texts = {id: text for text, id in model["vocab"].items()}
    added = {entry["id"]: entry for entry in raw.get("added_tokens", [])}
    texts |= {id: entry["content"] for id, entry in added.items()}
    if max(texts, default=0) >= count:
        raise EdgeError(
            f"{checkpoint.path}: the tokenizer has the token {max(texts)}, but the embedding has only "
            f"{count} rows."
        )
    tokens, types = [], []
    for id in range(count):
        text, kind = texts.get(id, f"[PAD{id}]"), NORMAL
        if id not in texts:
            kind = UNUSED
        elif text == model.get("unk_token"):
            kind = UNKNOWN
        elif id in added:
            kind = CONTROL if added[id]["special"] else USER_DEFINED
        elif model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(text):
            kind = BYTE
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> np.ndarray:
    """float32: minus the rank of the first merge that makes the token, so that the best pair scores highest.

    Tokens that no merge makes come last; their scores decide nothing.
    """
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return np.array([-float(ranks.get(token, len(merges))) for token in tokens], np.float32)


def _pre_name(checkpoint: Checkpoint, raw: Mapping[str, Any]) -> str:
    """The name in llama.cpp's list of the way that this tokenizer cuts text into words."""
    patterns = tuple(_patterns(raw.get("pre_tokenizer")))
    whole_words = bool(raw["model"].get("ignore_merges"))
    near = [name for name, pre in PRE_TOKENIZERS.items() if pre.byte_level and pre.patterns == patterns]
    for name in near:
        if PRE_TOKENIZERS[name].ignore_merges == whole_words:
            return name
    raise EdgeError(
        f"{checkpoint.path / 'tokenizer.json'}: GGUF has no name for the way in which this tokenizer cuts "
        "text into words, so llama.cpp could not read it."
    )


def _patterns(pre: Mapping[str, Any] | None) -> Iterator[str]:
    """The regular expressions of a pre-tokenizer, "" for a step that is none."""
    for step in _steps(pre, "pretokenizers"):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            yield step["pattern"]["Regex"]
        elif kind == "Digits":
            yield r"\p{N}" if step["individual_digits"] else r"\p{N}+"
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            if step.get("use_regex", True):
                yield from PRE_TOKENIZERS["gpt-2"].patterns
        else:
            yield ""


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a part of tokenizer.json, which may be one, a sequence or none."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _special(checkpoint: Checkpoint, tokenizer: Tokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_json(checkpoint.path / "tokenizer_config.json")
    pad = token_text(settings.get("pad_token"))
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "unknown_token_id": tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None,
        "padding_token_id": tokenizer.token_to_id(pad) if pad else None,
    }
    found: dict[str, Any] = {key: id for key, id in ids.items() if id is not None}
    return found | {"add_bos_token": tokenizer.add_bos, "add_eos_token": tokenizer.add_eos}


def _proven(checkpoint: Checkpoint, tokenizer: Tokenizer, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys under their whole names, with the chat template. Whether a space is put before the text
    follows from which of the two gives the folder's ids."""
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    with contextlib.suppress(EdgeError):  # many have none
        whole["tokenizer.chat_template"] = find_template(checkpoint)
    texts = [_PROBE, f"{_PROBE}{tokenizer.eos_token}{_PROBE}", "a", " a", ""]
    wanted = [tokenizer.encode(text) for text in texts]
    for prefix in (False, True) if keys["model"] == "llama" else (None,):
        extra = {} if prefix is None else {"tokenizer.ggml.add_space_prefix": prefix}
        made = tokenizer_from_gguf(whole | extra, checkpoint.path)
        if [made.encode(text) for text in texts] == wanted:
            return whole | extra
    raise EdgeError(
        f"{checkpoint.path / 'tokenizer.json'}: written as GGUF metadata, this tokenizer would give other "
        "tokens, so the model is not converted."
    )

"""A GGUF file's vocabulary as a `tokenizers` tokenizer.

Follows llama.cpp src/llama-vocab.cpp: `gpt2` is byte-level BPE with a named pre-tokenizer, `llama` is
SentencePiece BPE (merges follow from the scores), `gemma4` is BPE on raw UTF-8.
"""

from __future__ import annotations

import logging
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from edgellm.text.tokenizer import END_NAMES, Tokenizer

if TYPE_CHECKING:
    import tokenizers

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "\u2581"
_KINDS = ("gpt2", "llama", "gemma4")
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss, as llama.cpp has it


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Build the tokenizer from `tokenizer.ggml.*`. Raises EdgeError naming the file and what is wrong."""
    from tokenizers import AddedToken

    source = _Source(metadata, path)
    kind = source.text("model")
    if kind is None:
        raise EdgeError(f"{path}: the file holds no tokenizer; use a complete model file.")
    if kind not in _KINDS:
        raise EdgeError(
            f"{path}: unknown tokenizer model '{kind}'; edgellm reads {', '.join(_KINDS)} in GGUF files."
        )
    tokens = source.tokens()
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(t for id, t in enumerate(tokens) if vocab[t] != id)
        raise EdgeError(f"{path}: the vocabulary lists the token {twice!r} twice; the file is damaged.")
    types = source.token_types(len(tokens))
    ends = _mark_by_name(vocab, types)
    add_space = False
    if kind == "llama":
        pre = PreTokenizer((), add_bos=True, byte_level=False)
        add_space = source.flag("add_space_prefix", True)
        backend = _sentencepiece(source, tokens, vocab, types, add_space)
    else:
        pre = _pre_tokenizer(source, kind)
        backend = _bpe(source, vocab, pre)

    strip = _strips_right(metadata)
    special = [id for id, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)]
    literal = [id for id, kind in enumerate(types) if kind == USER_DEFINED]
    added = sorted(special + literal)
    backend.add_tokens(
        [
            AddedToken(
                tokens[id], normalized=False, special=types[id] != USER_DEFINED, rstrip=strip(tokens[id])
            )
            for id in added
        ]
    )

    default_bos, default_eos = (1, 2) if kind == "llama" else (None, None)  # SentencePiece's own defaults
    bos = source.token_id("bos_token_id", len(tokens), default_bos)
    eos = source.token_id("eos_token_id", len(tokens), default_eos)
    for key in ("eot_token_id", "eom_token_id"):
        ends.add(source.token_id(key, len(tokens), None))
    ends.add(eos)
    add_bos = True if kind == "gemma4" else source.flag("add_bos_token", pre.add_bos)
    return Tokenizer(
        backend,
        pieces="byte-level" if pre.byte_level else "sentencepiece",
        source=str(path),
        bos_id=bos,
        eos_id=eos,
        end_ids=[id for id in ends if id is not None],
        special_ids=special,
        literal_ids=literal,
        add_bos=add_bos,
        add_eos=source.flag("add_eos_token", False),
        strip_space=add_space,
    )


class _Source:
    """`tokenizer.ggml.*` of one file, each value checked as it is read."""

    def __init__(self, metadata: Mapping[str, Any], path: Path):
        self.metadata = metadata
        self.path = path

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise EdgeError(f"{self.path}: tokenizer.ggml.{key} should be text; the file is damaged.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def token_id(self, key: str, n_tokens: int, default: int | None) -> int | None:
        value = self.get(key)
        if value is None:
            return default if default is not None and default < n_tokens else None
        id = int(value) if isinstance(value, numbers.Integral) else -1
        if not 0 <= id < n_tokens:
            raise EdgeError(
                f"{self.path}: tokenizer.ggml.{key} is {value}, but the vocabulary has {n_tokens} tokens."
            )
        return id

    def strings(self, key: str) -> list[str] | None:
        value = self.get(key)
        if value is None:
            return None
        values = list(value)
        if not {*map(type, values)} <= {str}:
            raise EdgeError(
                f"{self.path}: tokenizer.ggml.{key} should be a list of text; the file is damaged."
            )
        return values

    def tokens(self) -> list[str]:
        tokens = self.strings("tokens")
        if not tokens:
            raise EdgeError(f"{self.path}: the file holds no vocabulary (tokenizer.ggml.tokens).")
        return [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]

    def numbers(self, key: str, n_tokens: int) -> list[Any] | None:
        value = self.get(key)
        if value is None:
            return None
        values = np.asarray(value)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise EdgeError(f"{self.path}: tokenizer.ggml.{key} should be a list of numbers.")
        if len(values) != n_tokens:
            raise EdgeError(
                f"{self.path}: tokenizer.ggml.{key} has {len(values)} entries for {n_tokens} tokens; "
                "the file is damaged."
            )
        return values.tolist()

    def token_types(self, n_tokens: int) -> list[int]:
        return self.numbers("token_type", n_tokens) or [NORMAL] * n_tokens


def _mark_by_name(vocab: Mapping[str, int], types: list[int]) -> set[int | None]:
    """Ids that end a generation by their name; sets the types that files are known to get wrong."""
    ends = {name: vocab[name] for name in END_NAMES if name in vocab}
    if "</s>" in ends and types[ends["</s>"]] == NORMAL:  # HTML's </s> as an ordinary word, as in Qwen 2
        del ends["</s>"]
    for id in ends.values():
        types[id] = CONTROL
    for name in _ALWAYS_SHOWN:
        if name in vocab:
            types[vocab[name]] = USER_DEFINED
    # gpt-oss and Solar end a channel, not the answer, with <|end|>; in Gemma 4 </s> is an ordinary token
    harmony = "<|return|>" in vocab and ("<|call|>" in vocab or "<|calls|>" in vocab)
    solar = "<|flush|>" in vocab and ("<|call|>" in vocab or "<|calls|>" in vocab)
    if "<|end|>" in ends and (harmony or solar):
        types[ends.pop("<|end|>")] = USER_DEFINED
    if "</s>" in ends and "<|tool_response>" in vocab:
        types[ends.pop("</s>")] = NORMAL
    return set(ends.values())


def _strips_right(metadata: Mapping[str, Any]) -> Any:
    """Phi-3 swallows white space after its special tokens, which GGUF has no field for (as llama.cpp)."""
    name = str(metadata.get("general.name", "")).lower()
    phi3 = "phi-3" in name or "phi3" in name
    return lambda token: phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")


def _pre_tokenizer(source: _Source, kind: str) -> PreTokenizer:
    name = "gemma4" if kind == "gemma4" else source.text("pre")
    if not name:
        logging.getLogger("edgellm").warning(
            "%s: the file does not name its pre-tokenizer; using 'default' as llama.cpp does, which may "
            "lower the quality of the text.",
            source.path,
        )
        name = "default"
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise EdgeError(
            f"{source.path}: unknown pre-tokenizer '{name}'; known are {', '.join(sorted(PRE_TOKENIZERS))}."
        )
    return pre


def _bpe(source: _Source, vocab: dict[str, int], pre: PreTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import Regex, normalizers, pre_tokenizers

    lines = source.strings("merges")
    if not lines:
        raise EdgeError(f"{source.path}: the vocabulary has no merges (tokenizer.ggml.merges).")
    try:
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    except ValueError:
        line = next(line for line in lines if line.count(" ") != 1)
        raise EdgeError(
            f"{source.path}: the merge {line!r} is not two tokens; the file is damaged."
        ) from None
    backend = _model(source, vocab, merges, ignore_merges=pre.ignore_merges, byte_fallback=not pre.byte_level)
    splits: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(p), "isolated") for p in pre.patterns
    ]
    if pre.byte_level:
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return backend


def _sentencepiece(
    source: _Source, tokens: Sequence[str], vocab: dict[str, int], types: Sequence[int], add_space: bool
) -> tokenizers.Tokenizer:
    from tokenizers import normalizers

    scores = source.numbers("scores", len(tokens))
    if scores is None:
        raise EdgeError(f"{source.path}: the vocabulary has no scores (tokenizer.ggml.scores).")
    unknown = source.token_id("unknown_token_id", len(tokens), 0)
    merges = merges_from_scores(tokens, vocab, scores, types)
    backend = _model(
        source,
        vocab,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    steps = [normalizers.Prepend(_SPACE)] if add_space else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    return backend


def merges_from_scores(
    tokens: Sequence[str], vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Merge rules, best first, that do what SentencePiece does: join the pair whose result scores highest.

    Every way to cut a token into two tokens is a rule with the token's score as its rank. Control, unknown,
    byte and user-defined tokens are never the result of a merge.
    """
    rules: list[tuple[str, str]] = []
    for id in np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable").tolist():
        token = tokens[id]
        if types[id] == NORMAL or types[id] == UNUSED:
            for cut in range(1, len(token)):
                if token[:cut] in vocab and token[cut:] in vocab:
                    rules.append((token[:cut], token[cut:]))
    return rules


def _model(
    source: _Source, vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers.models import BPE

    try:
        return tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        unknown = [m for m in merges if not {*m, "".join(m)} <= vocab.keys()]
        what = f"the merge {' '.join(unknown[0])!r} makes or names an unknown token" if unknown else error
        raise EdgeError(f"{source.path}: the vocabulary is damaged: {what}.") from None

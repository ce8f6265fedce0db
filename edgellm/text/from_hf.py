"""A Hugging Face folder's tokenizer.json, with the start and end tokens its configuration files name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.errors import EdgeError
from edgellm.text.tokenizer import END_NAMES, Tokenizer

if TYPE_CHECKING:
    import tokenizers


def tokenizer_from_hf(folder: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Read folder/tokenizer.json and tokenizer_config.json.

    metadata: config.json under "config" and generation_config.json under "generation_config"; the end
    tokens of all three count, and the start token of the first that names one.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EdgeError(f"{folder}: the folder has no tokenizer.json; save it with a fast tokenizer.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise EdgeError(f"{path}: not a tokenizer that can be read ({error}).") from None
    backend.no_truncation()
    backend.no_padding()

    settings = read_json(folder / "tokenizer_config.json")
    sources = [metadata.get("generation_config") or {}, metadata.get("config") or {}]
    added = backend.get_added_tokens_decoder()
    bos = _first_id(backend, path, sources, settings, "bos_token")
    eos = _first_id(backend, path, sources, settings, "eos_token")
    ends = {id for source in sources for id in _ids(source.get("eos_token_id"))}
    ends |= {id for id, token in added.items() if token.special and token.content in END_NAMES}
    names = {token.content for token in added.values()}
    if "<|return|>" in names and "<|call|>" in names:  # gpt-oss ends a channel, not the answer, with <|end|>
        ends -= {id for id, token in added.items() if token.content == "<|end|>"}
    if eos is not None:
        ends.add(eos)
    first, last = _around(backend)
    pieces, strip = _decoder(backend, path)
    return Tokenizer(
        backend,
        pieces=pieces,
        source=str(folder),
        bos_id=bos,
        eos_id=eos,
        end_ids=ends,
        special_ids=[id for id, token in added.items() if token.special],
        literal_ids=[id for id, token in added.items() if not token.special],
        add_bos=_flag(settings, "add_bos_token", bos is not None and first == bos),
        add_eos=_flag(settings, "add_eos_token", eos is not None and last == eos),
        strip_space=strip,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} when there is no such file. Raises EdgeError on anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EdgeError(f"{path}: not readable as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise EdgeError(f"{path}: should hold one JSON object.")
    return value


def token_text(value: Any) -> str | None:
    """A token in tokenizer_config.json: plain text, or an object with its text under "content"."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    return default if value is None else bool(value)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int)]


def _first_id(
    backend: tokenizers.Tokenizer,
    path: Path,
    sources: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    key: str,
) -> int | None:
    """The id of "bos_token" or "eos_token": by the tokenizer's own name for it, else by number."""
    text = token_text(settings.get(key))
    if text is not None:
        id: int | None = backend.token_to_id(text)
        if id is None:
            raise EdgeError(f"{path}: the {key} {text!r} is not in the vocabulary.")
        return id
    return next((id for source in sources for id in _ids(source.get(f"{key}_id"))), None)


def _around(backend: tokenizers.Tokenizer) -> tuple[int | None, int | None]:
    """The ids that the post-processor puts before and after a text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    extra = len(whole) - len(plain)
    for before in range(extra + 1):
        if whole[before : before + len(plain)] == plain:
            return (whole[0] if before else None, whole[-1] if before < extra else None)
    return None, None


def _decoder(
    backend: tokenizers.Tokenizer, path: Path
) -> tuple[Literal["byte-level", "sentencepiece"], bool]:
    """How tokens spell bytes, and whether decoding takes a first space away."""
    decoder = backend.decoder
    state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder else {"type": "none"}
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return "byte-level", False
    if "Metaspace" in kinds:
        scheme = next(s for s in steps if s["type"] == "Metaspace").get("prepend_scheme", "always")
        return "sentencepiece", scheme != "never"
    if kinds & {"ByteFallback", "Replace"}:
        return "sentencepiece", any(s["type"] == "Strip" and s.get("start") for s in steps)
    raise EdgeError(
        f"{path}: its decoder ({', '.join(sorted(kinds))}) is neither byte-level nor SentencePiece, "
        "so it is not a text generator's tokenizer that edgellm can read."
    )

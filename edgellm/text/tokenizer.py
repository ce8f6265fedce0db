"""Tokenizer: text to token ids and back, for any checkpoint.

The merging and the splitting are done by the `tokenizers` library; from_gguf.py and from_hf.py set it up.
Decoding goes through bytes, one piece per id, because a token may hold half of a UTF-8 character.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    import tokenizers

    from edgellm.formats.checkpoint import Checkpoint

# Names that end a generation whatever the metadata says (llama.cpp, src/llama-vocab.cpp).
# fmt: off
END_NAMES = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
        # fill-in-the-middle padding, repository and file separators end a completion too
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
        "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    )
)
# fmt: on
_SPACE = "\u2581"  # SentencePiece's visible space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of an opened checkpoint.

    Raises EdgeError with one sentence when the vocabulary is missing, damaged or of an unknown kind.
    """
    if checkpoint.format in ("gguf", "edge"):
        from edgellm.text.from_gguf import tokenizer_from_gguf

        return tokenizer_from_gguf(checkpoint.metadata, checkpoint.path)
    from edgellm.text.from_hf import tokenizer_from_hf

    return tokenizer_from_hf(checkpoint.path, checkpoint.metadata)


class Tokenizer:
    """Encodes and decodes. Made by load_tokenizer; safe to share between threads.

    bos_id, eos_id: start and end token, None if the model has none.
    end_ids: every id that ends a generation. vocab_size: ids known here (a model may pad beyond it).
    add_bos, add_eos: what the model adds around a prompt of its own accord.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        pieces: Literal["byte-level", "sentencepiece"],
        source: str,
        bos_id: int | None = None,
        eos_id: int | None = None,
        end_ids: Iterable[int] = (),
        special_ids: Collection[int] = (),
        literal_ids: Collection[int] = (),
        add_bos: bool = False,
        add_eos: bool = False,
        strip_space: bool = False,
    ):
        """special_ids: control tokens, hidden by decode. literal_ids: added tokens that stand for their own
        text. strip_space: encoding puts a space before the text, so decoding takes it away."""
        self._backend = backend
        self._lock = threading.Lock()  # guards the backend's encode_special_tokens switch
        self._byte_level = pieces == "byte-level"
        self._alphabet = _byte_alphabet() if self._byte_level else {}
        self._special_ids = frozenset(special_ids)
        self._literal_ids = frozenset(literal_ids)
        self._pieces: dict[int, bytes] = {}
        self.source = source
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids = frozenset(end_ids)
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.strip_space = strip_space
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        for name, wanted, token in (("start", add_bos, bos_id), ("end", add_eos, eos_id)):
            if wanted and token is None:
                raise EdgeError(f"{source}: the tokenizer adds {name} tokens but the file names none.")

    def encode(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids of `text`.

        special: control tokens written out in the text ("<|im_end|>") become their ids; False keeps them
        as plain text. bos: put the start token first; None does what the model says (and, for the few
        models that want it, also appends the end token). A byte that the vocabulary has no token for is left
        out, as everywhere (SmolLM2 lacks some control characters). Raises EdgeError on broken Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair: bytes that were not UTF-8
            raise EdgeError("The text is not valid UTF-8; re-encode it as UTF-8 first.") from None
        with self._lock:
            self._backend.encode_special_tokens = not special
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if self.add_bos if bos is None else bos:
            if self.bos_id is None:
                raise EdgeError(f"{self.source}: the model has no start token, so none can be added.")
            ids.insert(0, self.bos_id)
        if bos is None and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True, *, continuation: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        skip_special: leave control tokens out. continuation: the text goes on after other text, so keep
        the space that some tokenizers put before the first word.
        """
        data = b"".join(self.piece(int(i), skip_special) for i in ids)
        if self.strip_space and not continuation and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def piece(self, id: int, skip_special: bool = True) -> bytes:
        """The bytes that one id stands for; empty for an id outside the vocabulary."""
        if skip_special and id in self._special_ids:
            return b""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._make_piece(id)
        return piece

    def _make_piece(self, id: int) -> bytes:
        text = self.id_to_token(id)
        if text is None:
            return b""
        if id in self._special_ids or (self._byte_level and id in self._literal_ids):
            return text.encode("utf-8")
        if self._byte_level:
            try:
                return bytes(self._alphabet[c] for c in text)
            except KeyError:  # a token written in plain text, outside the byte alphabet
                return text.encode("utf-8")
        byte = _BYTE_TOKEN.fullmatch(text)
        if byte and id not in self._literal_ids:
            return bytes([int(byte[1], 16)])
        return text.replace(_SPACE, " ").encode("utf-8")

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary writes it, or None outside the vocabulary."""
        if not 0 <= id < 1 << 32:  # the library takes 32-bit ids
            return None
        token: str | None = self._backend.id_to_token(id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        id: int | None = self._backend.token_to_id(token)
        return id

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: they mark the text's structure and are not part of it."""
        return self._special_ids

    @property
    def bos_token(self) -> str:
        return self._text_of(self.bos_id)

    @property
    def eos_token(self) -> str:
        return self._text_of(self.eos_id)

    def _text_of(self, id: int | None) -> str:
        return "" if id is None else self.id_to_token(id) or ""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table from printable character to byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = (b for b in range(256) if chr(b) not in table)
    table.update({chr(256 + n): b for n, b in enumerate(sorted(set(others)))})
    return table

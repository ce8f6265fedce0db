"""What is learned from and what is held out, as token ids.

Documents are shared out by a hash of their text, so that the held-out ones stay the same when others are
added. Each document is followed by the end token. What shall be learned well is repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"  # id 0
HELD_OUT = 40  # one document of so many
REPEATS = 3


@dataclass(frozen=True)
class Corpus:
    """Token ids, uint16, to train on and held out, and the bytes of the latter's text."""

    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


def split(documents: Iterable[str]) -> tuple[list[str], list[str]]:
    """(to train on, held out), each document once, in an order that only their texts decide."""
    ordered = sorted(set(documents), key=_digest)
    held_out = [text for text in ordered if int(_digest(text)[:8], 16) % HELD_OUT == 0]
    kept = set(held_out)
    return [text for text in ordered if text not in kept], held_out


def train_tokenizer(documents: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` tokens, as GPT-2's, whose token 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """uint16 ids of the documents, each with the end token behind it."""
    encoded = tokenizer.encode_batch(list(documents))
    return np.concatenate([np.array([*e.ids, 0], np.uint16) for e in encoded])


def build(once: Iterable[str], repeated: Iterable[str], vocab: int, folder: Path) -> tuple[Corpus, Tokenizer]:
    """The corpus and its tokenizer, which is also saved in the folder. The documents of `repeated` stand
    REPEATS times in what is trained on, and once in what is held out."""
    again = set(repeated)
    learned, held_out = split([*once, *again])
    tokenizer = train_tokenizer(learned, vocab)
    copies = [(text, copy) for text in learned for copy in range(REPEATS if text in again else 1)]
    learned = [text for text, _ in sorted(copies, key=lambda one: _digest(f"{one[1]} {one[0]}"))]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "held_out.txt").write_text("\n\n".join(held_out), encoding="utf-8")
    nbytes = sum(len(text.encode()) for text in held_out)
    return Corpus(encode(tokenizer, learned), encode(tokenizer, held_out), nbytes), tokenizer


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

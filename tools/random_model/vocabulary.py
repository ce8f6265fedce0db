"""A vocabulary of any size that a GPT-2 tokenizer accepts: the bytes, and generated pieces."""

from __future__ import annotations

from itertools import islice, product
from string import ascii_lowercase

END = "<|endoftext|>"
LONGEST = 5  # letters of a piece; 26^2 + ... + 26^5 of them are more than any vocabulary has


def letters() -> list[str]:
    """The 256 bytes as GPT-2 writes them: printable ones as they are, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """(tokens, merges) of `size` tokens: the end of text, the bytes, then "aa", "ab", ... "aaa", ...

    Every piece is the piece without its last letter merged with that letter, so that each can be reached.
    """
    base = [END, *letters()]
    if size < len(base):
        raise ValueError(f"a vocabulary of {size} has no room for {len(base)} tokens")
    pieces = ("".join(word) for n in range(2, LONGEST + 1) for word in product(ascii_lowercase, repeat=n))
    made = list(islice(pieces, size - len(base)))
    return base + made, [f"{piece[:-1]} {piece[-1]}" for piece in made]

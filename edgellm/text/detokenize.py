"""Text from tokens as they come, never half a character."""

from __future__ import annotations

import codecs

from edgellm.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids one at a time; what push and flush return, joined, is Tokenizer.decode of all the ids.

    skip_special and continuation mean what they mean for Tokenizer.decode.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continuation: bool = False):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.strip_space and not continuation

    def push(self, id: int) -> str:
        """The text that is complete after one more id; "" while a character waits for its other bytes."""
        piece = self._tokenizer.piece(int(id), self._skip_special)
        if self._strip and piece:
            piece = piece.removeprefix(b" ")
            self._strip = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never got all its bytes, else ""."""
        return self._utf8.decode(b"", final=True)

"""ChatSession: a conversation whose KV cache lives on, so that only what is new of a question is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgellm.generate import Run, TokenHistory

if TYPE_CHECKING:
    from edgellm.model import Model


class ChatSession:
    """messages: the conversation so far, as the chat template takes it."""

    def __init__(self, model: Model, system: str | None = None):
        self.model = model
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.history = TokenHistory(model.new_session())

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages.clear()

    def prompt(self, question: str) -> list[int]:
        """Token ids of the conversation with `question` as its last message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.model.chat_prompt([*system, *self.messages, {"role": "user", "content": question}])

    def ask(
        self, question: str, max_tokens: int = 1024, *, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Yield the answer in pieces. Closing the iterator keeps what was said so far in the conversation.

        Raises EdgeError, before anything is remembered, when the conversation outgrows the context.
        """
        run = self.start(question, max_tokens, stop=stop, **sampling)
        said: list[str] = []
        try:
            for piece in run.pieces():
                said.append(piece)
                yield piece
        finally:
            if said:
                self.remember(question, "".join(said))

    def start(
        self, question: str, max_tokens: int = 1024, *, stop: Sequence[str] = (), **sampling: Any
    ) -> Run:
        """The answer to `question` as a Run; `remember` it when it ends."""
        return self.model.start(
            self.prompt(question),
            max_tokens,
            stop=stop,
            history=self.history,
            continuation=False,
            **sampling,
        )

    def remember(self, question: str, answer: str) -> None:
        """Append a question and its answer to the conversation."""
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

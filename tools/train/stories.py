"""Simple stories that SmolLM2 writes, many at once, through edgellm's own batched decode.

A story is a line of JSON: its number, and its text. The file grows by whole lines, so that a run that was
stopped goes on where it ended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import edgellm
from edgellm.executors.base import Session
from edgellm.text.sampling import Sampler, SamplingParams
from tools.train.prompts import prompt

MODEL = "smollm2"
MOST_TOKENS = 240  # of a story; what is cut loses its last, unfinished sentence
CONTEXT = 512
_UNWANTED = re.compile(r"[^\x20-\x7e\n]|https?:|\*\*|^#|```", re.MULTILINE)
_SENTENCE = re.compile(r".*?[.!?][\"')]*(?=\s|$)")  # what is no whole one at the end is not found
_WORD = re.compile(r"[a-z']+")
_ABOUT_ITSELF = re.compile(r"(?i)\b(stor(y|ies)|moral|the end|three-year-old|characters?|narrat|title)\b")
_PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-", "\u2013": "-"}
)


class Desk:
    """A session that stories are written in, one after the other; what their requests share stays in it."""

    def __init__(self, session: Session):
        self.session, self._held = session, np.empty(0, np.int64)

    def begin(self, ids: list[int]) -> np.ndarray:
        """Take in the beginning of a story. Returns logits (vocab,)."""
        new = np.array(ids)
        most = min(len(self._held), len(new) - 1)
        differs = np.flatnonzero(self._held[:most] != new[:most])
        shared = int(differs[0]) if len(differs) else most
        self.session.rewind(shared)
        self._held = new
        return self.session.prefill(new[shared:])


@dataclass
class Story:
    """A story on its way."""

    index: int
    desk: Desk
    sampler: Sampler
    opening: str
    tokens: list[int] = field(default_factory=list)


def write_stories(
    path: Path, count: int, *, seed: int, sequences: int, threads: int | None = None
) -> Iterator[tuple[int, float]]:
    """Write stories until `path` holds numbers 0 to count - 1. Yields (stories asked for
    so far, tokens a second) now and then."""
    done = _asked(path)
    waiting = iter(i for i in range(count) if i not in done)
    asked, tokens, start = len(done), 0, time.monotonic()
    with (
        edgellm.load(MODEL, context=CONTEXT, activations="int8", threads=threads) as model,
        path.open("a", encoding="utf-8") as file,
    ):
        vocab, tokenizer = model.program.vocab_size, model.tokenizer
        desks = [Desk(model.new_session()) for _ in range(sequences)]
        writing: list[Story] = []
        rows: list[np.ndarray] = []
        while True:
            while desks and (index := next(waiting, None)) is not None:
                request, opening = prompt(index, seed)
                story = Story(index, desks.pop(), Sampler(_sampling(seed + index), vocab), opening)
                ids = model.chat_prompt([{"role": "user", "content": request}])
                rows.append(story.desk.begin([*ids, *tokenizer.encode(opening)]))
                writing.append(story)
            if not writing:
                return
            going = []
            for story, logits in zip(writing, rows, strict=True):
                token = story.sampler.sample(logits)
                ended = token in tokenizer.end_ids
                if not ended:
                    story.tokens.append(token)
                if not ended and len(story.tokens) < MOST_TOKENS:
                    going.append(story)
                    continue
                text = story.opening + tokenizer.decode(story.tokens)
                file.write(json.dumps({"index": story.index, "text": text, "ended": ended}) + "\n")
                file.flush()
                desks.append(story.desk)
                asked, tokens = asked + 1, tokens + len(story.tokens)
                if asked % 100 == 0:
                    yield asked, tokens / (time.monotonic() - start)
            writing, rows = going, []
            if writing:
                sessions = [story.desk.session for story in writing]
                rows = list(model.executor.decode_batch(sessions, [story.tokens[-1] for story in writing]))


def _sampling(seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.8, min_p=0.05, top_k=0, top_p=1.0, repetition_penalty=1.1, penalty_window=96, seed=seed
    )


def read_stories(path: Path) -> list[str]:
    """The texts that are fit to learn from, in the order of their numbers, each once."""
    rows = {row["index"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    texts = (tidy(row["text"], row["ended"]) for _, row in sorted(rows.items()))
    return list(dict.fromkeys(text for text in texts if text))


def tidy(text: str, ended: bool) -> str:
    """A story as plain ASCII paragraphs of whole sentences; "" if it is not fit to learn from.

    A story that begins to repeat itself, or to speak of itself, ends there.
    """
    text = text.translate(_PLAIN).strip()
    if _UNWANTED.search(text):
        return ""
    kept: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for line in filter(None, map(str.strip, text.split("\n"))):
        sentences = _SENTENCE.findall(line)
        new = []
        for sentence in sentences:
            words = _WORD.findall(sentence.lower())
            runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)] or [tuple(words)]
            known = sum(run in seen for run in runs)
            repeats = 2 * known > len(runs) or 3 * len(set(words)) < 2 * len(words)
            if repeats or _ABOUT_ITSELF.search(sentence):
                break
            seen.update(runs)
            new.append(sentence.strip())
        if new:
            kept.append(" ".join(new))
        if len(new) < len(sentences):
            break
    text = "\n".join(kept)
    return text if len(text) >= 150 and text.count('"') % 2 == 0 else ""


def _asked(path: Path) -> set[int]:
    """Numbers of the stories that a file holds. A last line without an end is cut off."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    return {json.loads(line)["index"] for line in whole.splitlines()}

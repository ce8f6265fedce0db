"""The parts of the training tool that need neither torch nor a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.train.corpus import encode, split, train_tokenizer
from tools.train.export import card
from tools.train.prompts import prompt
from tools.train.stories import read_stories, tidy

STORY = (
    "One day, Tom the fox was at the lake. Tom saw a kite. The kite was stuck in a big tree. "
    "Tom climbed up slowly and took it down. Then he gave it to a little girl, who laughed and thanked him. "
)


def test_requests_depend_on_number_and_seed_alone() -> None:
    first = [prompt(i, 1) for i in range(50)]
    assert [prompt(i, 1) for i in reversed(range(50))] == first[::-1]
    assert len(set(first)) == 50
    assert prompt(0, 2) != first[0]
    assert not any("{" in text for pair in first for text in pair)


@pytest.mark.parametrize(
    ("added", "kept"),
    [
        ("They were all happy.", "They were all happy."),
        ("They were all hap", ""),  # cut off in a sentence
        ("This story is about sharing. It is nice.", ""),
        ("Tom climbed up slowly and took it down. They sang.", ""),  # repeats itself
        ("He ran and ran and ran and ran and ran.", ""),
        ("\u201cOh!\u201d said Tom.", '"Oh!" said Tom.'),
    ],
)
def test_a_story_ends_where_it_goes_wrong(added: str, kept: str) -> None:
    assert tidy(STORY + added, ended=True) == (STORY + kept).strip()


@pytest.mark.parametrize(
    "text", ["Too short.", STORY + "See https://x.org now.", STORY + "Caf\u00e9 is open."]
)
def test_unfit_stories_are_left_out(text: str) -> None:
    assert tidy(text, ended=True) == ""


def test_stories_come_in_the_order_of_their_numbers_and_once(tmp_path: Path) -> None:
    other = STORY.replace("Tom", "Ann")
    rows = [(2, STORY), (0, other), (1, "no"), (3, STORY)]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"index": i, "text": t, "ended": True}) + "\n" for i, t in rows))
    assert read_stories(path) == [other.strip(), STORY.strip()]


def test_more_documents_move_none_from_one_side_to_the_other() -> None:
    documents = [f"document {i}" for i in range(400)]
    learned, held_out = split(documents)
    assert sorted(learned + held_out) == sorted(documents)
    assert 2 < len(held_out) < 30
    more_learned, more_held_out = split([*documents, *(f"other {i}" for i in range(200)), documents[0]])
    assert set(learned) <= set(more_learned)
    assert set(held_out) <= set(more_held_out)


def test_the_tokenizer_gives_every_text_back() -> None:
    tokenizer = train_tokenizer([STORY] * 3, 300)
    assert tokenizer.get_vocab_size() == 300
    text = 'Caf\u00e9 "12" \u4e2d\n\nTom'
    ids = encode(tokenizer, [text, "Tom"])
    ends = np.flatnonzero(ids == 0)
    assert len(ends) == 2
    assert tokenizer.decode(ids[: ends[0]].tolist()) == text


def test_the_card_compares_the_two_forms() -> None:
    facts = {
        "parameters": 9e6, "layers": 8, "hidden": 256, "ffn": 1024, "vocab": 4096, "context": 512,
        "plan": {"steps": 10, "batch": 16, "window": 256}, "perplexity": 22.0, "active_gates": [0.1, 0.3],
        "seconds": 60.0, "train_tokens": 1_500_000, "held_out_tokens": 1000, "curve": [[10, 3.0, 22.0]],
    }  # fmt: skip
    text = card(
        {"ternary": facts, "float": {**facts, "perplexity": 20.0}},
        3_500_000,
        1,
        "Once upon a time.\nThe end.",
    )
    assert "is +10.0 % against the float one. Of its gates 20 %" in text
    assert "public domain in the US" in text
    assert "> Once upon a time.\n> The end.\n" in text
    assert "| 10 | 3.000 | 22.00 | 3.000 | 22.00 |" in text

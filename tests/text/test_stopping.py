"""Stop strings, end tokens and the limit."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from edgellm.text.stopping import StopChecker


def stream(chunks: list[str], stops: list[str]) -> tuple[list[str], str]:
    checker = StopChecker(stops)
    got = []
    for chunk in chunks:
        got.append(checker.push(chunk))
        if checker.stopped:
            break
    got.append(checker.flush())
    return got, checker.reason


def cut(text: str, stops: list[str]) -> tuple[str, str]:
    """The text before the first place where any stop string occurs."""
    places = [at for at in range(len(text)) for stop in stops if text.startswith(stop, at)]
    return (text[: min(places)], "stop") if places else (text, "length")


stop_strings = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), stop_strings)
@example(["a", "b", "a"], ["aba", "b"])  # "b" is there before "aba" is, and starts later
@example(["ab", ""], ["abc", "b"])
@settings(max_examples=500)
def test_output_is_the_text_cut_at_the_first_stop_string(chunks: list[str], stops: list[str]) -> None:
    got, reason = stream(chunks, stops)
    assert ("".join(got), reason) == cut("".join(chunks), stops)


@given(st.text("ab", max_size=30), stop_strings, st.integers(0, 30))
def test_nothing_is_held_back_without_need(text: str, stops: list[str], at: int) -> None:
    """What is out after a prefix is all that no possible continuation could still cut."""
    prefix = text[:at]
    checker = StopChecker(stops)
    out = "".join(checker.push(letter) for letter in prefix)
    if checker.stopped:
        return
    starts = [i for i in range(len(prefix)) for s in stops if s.startswith(prefix[i:])]
    starts += [i for i in range(len(prefix)) for s in stops if prefix.startswith(s, i)]
    assert out == prefix[: min(starts, default=len(prefix))]


def test_text_passes_at_once_when_nothing_can_stop_it() -> None:
    checker = StopChecker([])
    assert [checker.push(text) for text in ("a", "", "bc")] == ["a", "", "bc"]
    assert checker.flush() == ""
    assert checker.reason == "length"


def test_the_start_of_a_stop_string_waits_and_is_let_go() -> None:
    checker = StopChecker(["</end>"])
    assert [checker.push(text) for text in ("x</", "en", "ds</e")] == ["x", "", "</ends"]
    assert checker.flush() == "</e"
    assert checker.reason == "length"


def test_nothing_comes_after_a_stop_string() -> None:
    checker = StopChecker(["STOP"])
    assert checker.push("a ST") == "a "
    assert checker.push("OP b") == ""
    assert checker.stopped
    assert checker.push("c") == ""
    assert checker.flush() == ""
    assert checker.reason == "stop"


def test_an_end_token_ends_the_turn() -> None:
    checker = StopChecker(["\n\n"], {2})
    assert not checker.is_end(3)
    assert checker.push("a\n") == "a"
    assert checker.is_end(2)
    assert checker.flush() == "\n"
    assert (checker.reason, checker.stopped) == ("end_of_turn", True)


def test_one_stop_string_may_come_without_a_list() -> None:
    checker = StopChecker("end")
    assert checker.push("an en") == "an "
    assert checker.push("d") == ""
    assert checker.reason == "stop"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(EdgeError, match="stop string is empty"):
        StopChecker(["a", ""])

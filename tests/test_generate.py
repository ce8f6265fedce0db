from __future__ import annotations

import time

import numpy as np
import pytest

from edgellm.executors.base import Session
from edgellm.generate import Run, TokenHistory
from edgellm.text.sampling import Sampler, SamplingParams

VOCABULARY = 16
END = 15


class Counting(Session):
    """After token t the likeliest is t + 1; keeps what it was made to run, and takes `delay` for a call."""

    def __init__(self, context=32, delay=0.0):
        super().__init__(context, VOCABULARY)
        self.ran: list[list[int]] = []
        self.delay = delay

    def _forward(self, tokens, all_logits):
        time.sleep(self.delay)
        self.ran.append(tokens.tolist())
        return np.eye(VOCABULARY, dtype=np.float32)[(tokens[-1] + 1) % VOCABULARY]


class Letters:
    """Token t is the letter number t, token 14 the first byte of a character of two."""

    strip_space = False
    end_ids = frozenset({END})

    def piece(self, id, skip_special=True):
        return b"\xc3" if id == 14 else bytes([ord("a") + id])


def make_run(prompt, session=None, history=None, max_tokens=100, stop=()):
    history = history or TokenHistory(session or Counting())
    sampler = Sampler(SamplingParams(temperature=0), VOCABULARY)
    return Run(history, Letters(), prompt, sampler=sampler, max_tokens=max_tokens, stop=stop, load_s=2.0)


@pytest.mark.parametrize(
    ("more", "text", "tokens", "reason"),
    [
        ({"max_tokens": 3}, "cde", [2, 3, 4], "length"),
        ({"stop": ["ef"]}, "cd", [2, 3, 4, 5], "stop"),
        ({"stop": ["f"], "max_tokens": 4}, "cde", [2, 3, 4, 5], "stop"),
        ({"stop": ["fgX"], "max_tokens": 5}, "cdefg", [2, 3, 4, 5, 6], "length"),
        ({}, "cdefghijklmn\ufffd", list(range(2, 15)), "end_of_turn"),
        ({"session": Counting(context=4)}, "cde", [2, 3, 4], "context"),
    ],
)
def test_it_ends_for_the_right_reason(more, text, tokens, reason):
    result = make_run([0, 1], **more).finish()
    assert (result.text, result.tokens, result.stop_reason) == (text, tokens, reason)
    assert result.prompt_tokens == 2


def test_events_carry_one_token_each_and_the_reason_comes_last():
    events = list(make_run([0], max_tokens=3))
    assert [(event.text, event.token, event.stop_reason) for event in events] == [
        ("b", 1, None),
        ("c", 2, None),
        ("d", 3, "length"),
    ]
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)


def test_the_end_token_is_no_token_of_the_text():
    *_, last = make_run([12])
    assert (last.text, last.token, last.stop_reason) == ("\ufffd", None, "end_of_turn")


def test_only_what_is_new_of_a_prompt_is_run():
    history = TokenHistory(Counting())
    make_run([0, 1, 2], history=history, max_tokens=3).finish()
    assert history.tokens == [0, 1, 2, 3, 4]  # the third token was sampled and not yet run
    history.session.ran.clear()
    make_run([0, 1, 2, 3, 9, 9], history=history, max_tokens=1).finish()
    assert history.session.ran == [[9, 9]]
    assert history.tokens == [0, 1, 2, 3, 9, 9]


def test_the_last_token_of_a_known_prompt_is_run_again():
    history = TokenHistory(Counting())
    make_run([0, 1, 2], history=history, max_tokens=1).finish()
    history.session.ran.clear()
    assert make_run([0, 1, 2], history=history, max_tokens=1).finish().tokens == [3]
    assert history.session.ran == [[2]]


def test_a_call_that_failed_leaves_the_history_true():
    class Failing(Counting):
        def _forward(self, tokens, all_logits):
            if 7 in tokens:
                raise RuntimeError("broken")
            return super()._forward(tokens, all_logits)

    history = TokenHistory(Failing())
    with pytest.raises(RuntimeError, match="broken"):
        make_run([5], history=history).finish()
    assert history.tokens == [5, 6]
    assert make_run([5, 6, 1], history=history, max_tokens=1).finish().tokens == [2]


def test_a_cancelled_run_ends_without_a_reason():
    run = make_run([0])
    events = iter(run)
    next(events)
    run.cancelled = True
    assert list(events) == []
    assert run.tokens == [1]


def test_a_long_prompt_is_cancelled_between_two_pieces():
    class Cancelling(Counting):
        def _forward(self, tokens, all_logits):
            run.cancelled = True
            return super()._forward(tokens, all_logits)

    session = Cancelling(context=4000)
    run = make_run([1] * 3000, session)
    assert list(run) == []
    assert 0 < sum(map(len, session.ran)) < 3000


def test_penalties_see_the_prompt():
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=5.0), VOCABULARY)
    run = Run(TokenHistory(Counting()), Letters(), [3, 2], sampler=sampler, max_tokens=1)
    assert run.finish().tokens == [0]  # 3 is the likeliest, but was seen; of the rest the first


def test_timings_are_those_of_the_calls():
    timings = make_run([0] * 8, Counting(delay=0.02), max_tokens=5).finish().timings
    assert timings.load_s == 2.0
    assert 0.02 <= timings.ttft_s < 0.2
    assert 8 / 0.2 < timings.prefill_tokens_per_second <= 8 / 0.02
    assert 1 / 0.2 < timings.decode_tokens_per_second <= 1 / 0.02


def test_one_token_has_no_decode_speed():
    assert make_run([0], max_tokens=1).finish().timings.decode_tokens_per_second is None


def test_an_unfinished_run_has_no_result():
    with pytest.raises(ValueError, match="not ended"):
        make_run([0]).result("", None)

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.tiny_model import vocabulary, write_tiny_gguf

GREEDY = ["--temp", "0", "--executor", "reference"]
ENDLESS = [f"--logit-bias={vocabulary().index(name)}=-inf" for name in ("<|im_end|>", "<|endoftext|>")]


def lines(edgellm, tiny, *questions, options=()):
    process = edgellm("chat", tiny, "-n", "4", *GREEDY, *options, input="".join(q + "\n" for q in questions))
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_piped_questions_are_answered_with_the_conversation_in_mind(edgellm, tiny, json_of):
    first = json_of("run", tiny, "hello", "-n", "4", *GREEDY)["text"]
    output = lines(edgellm, tiny, "hello", "hello", "/bye", "never asked")
    assert output.startswith(first)
    second = output.removeprefix(first).removeprefix("\n")
    assert second
    assert second.removesuffix("\n") != first  # the prompt was longer


def test_clear_starts_over(edgellm, tiny):
    once = lines(edgellm, tiny, "hello")
    assert lines(edgellm, tiny, "hello", "/clear", "hello") == 2 * once


def test_system_is_the_same_as_the_option_and_starts_over(edgellm, tiny):
    told = lines(edgellm, tiny, "hello", options=["--system", "world"])
    assert told != lines(edgellm, tiny, "hello")
    assert lines(edgellm, tiny, "hello", "/system world", "hello") == lines(edgellm, tiny, "hello") + told


def test_help_and_an_unknown_command_answer_on_standard_error(edgellm, tiny):
    process = edgellm("chat", tiny, *GREEDY, input="/help\n/nonsense\n")
    assert process.stdout == ""
    assert "/clear" in process.stderr
    assert "/nonsense is not a command" in process.stderr


def test_a_model_without_template_is_one_sentence(edgellm, sentence, tmp_path):
    model = write_tiny_gguf(tmp_path / "base.gguf", chat_template=False)
    assert "no chat template" in sentence(edgellm("chat", model, *GREEDY, input="hello\n"))


def test_a_conversation_that_outgrows_the_context_is_one_sentence(edgellm, tiny):
    process = edgellm("chat", tiny, "-n", "4", "--ctx", "40", *GREEDY, input="hello\n" * 9)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "longer than the context of 40" in process.stderr


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, command, environment):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = b""

    def write(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, text: bytes, after: int = 0) -> int:
        """Read until `text` came after position `after`; its end."""
        while text not in self.seen[after:]:
            self.wait_beyond(len(self.seen))
        return self.seen.index(text, after) + len(text)

    def wait_beyond(self, position: int) -> None:
        """Read until something came after `position`."""
        while len(self.seen) <= position:
            ready, _, _ = select.select([self.master], [], [], 60)
            assert ready, self.seen
            self.seen += os.read(self.master, 4096)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(environment, tmp_path):
    model = write_tiny_gguf(tmp_path / "long.gguf", context=100_000)
    command = [sys.executable, "-m", "edgellm", "chat", str(model), "-n", "100000", "--ctx", "100000"]
    started = Terminal([*command, *GREEDY, *ENDLESS], {**environment, "TERM": "dumb"})
    yield started
    started.process.kill()
    started.process.wait()
    os.close(started.master)


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(terminal):
    at = terminal.wait_for(b"> ")
    terminal.write(b"hello\n")
    at = terminal.wait_for(b"hello\r\n", at)
    terminal.wait_beyond(at)  # the answer has begun; it would go on for minutes
    terminal.write(b"\x03")
    at = terminal.wait_for(b"\n> ", at)
    terminal.write(b"/help\n")
    at = terminal.wait_for(b"Ctrl-C stops the answer.", at)
    at = terminal.wait_for(b"> ", at)
    terminal.write(b"\x04")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_at_the_question_does_not_leave(terminal):
    terminal.wait_for(b"> ")
    terminal.write(b"\x03")
    time.sleep(0.3)  # the signal throws typed keys away; one right after the prompt is seen at the line's end
    terminal.write(b"\n/bye\n")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_while_questions_are_piped_in_stops_the_answer(environment, tmp_path):
    model = write_tiny_gguf(tmp_path / "long.gguf", context=100_000)
    command = [sys.executable, "-m", "edgellm", "chat", str(model), "-n", "100000", "--ctx", "100000"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *GREEDY, *ENDLESS], env=environment, **pipes) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)  # closes its input, so that it leaves
        assert (process.returncode, errors) == (0, b"")

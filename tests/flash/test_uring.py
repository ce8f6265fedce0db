"""The ring against plain reads; what the kernel refuses; signals, and Python's global lock."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgellm.flash import uring
from edgellm.flash.uring import COOP_TASKRUN, FLAGS, SETUP, Ring, UringRefused
from edgellm.kernels.memory import address

ZERO = np.zeros(1, np.int64)


def write_later(pipe: int, seconds: float, text: str) -> subprocess.Popen[bytes]:
    """Another process writes into the pipe: no thread of this one has to run for it."""
    return subprocess.Popen(["sh", "-c", f"sleep {seconds}; printf {text}"], stdout=pipe)


@pytest.fixture
def pipe() -> tuple[int, int]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read_pipe(ring: Ring, pipe: int, memory: np.ndarray) -> None:
    ring.submit(pipe, ZERO, ZERO + 4, ZERO + address(memory), ZERO + 7)


def text(memory: np.ndarray) -> bytes:
    return memory[:4].tobytes()


@pytest.mark.usefixtures("needs_uring")
@pytest.mark.parametrize("depth", [1, 5, 64])
def test_many_rounds_of_random_reads_bring_the_bytes_of_the_file(content, memory, depth):
    random = np.random.default_rng(depth)
    ring = Ring(depth)
    fd = os.open(content.path, os.O_RDONLY)
    for _ in range(200):
        n = int(random.integers(1, depth + 1))
        offsets = random.integers(0, len(content.bytes) - 5000, n)
        lengths = random.integers(1, 5000, n)
        tags = random.integers(0, 2**63, n).astype(np.uint64) * np.uint64(2)
        at = np.arange(n) * 5000
        ring.submit(fd, offsets, lengths, address(memory) + at, tags)
        got_tags, results = ring.wait(n)
        assert ring.in_flight == 0
        assert dict(zip(got_tags.tolist(), results.tolist(), strict=True)) == dict(
            zip(tags.tolist(), lengths.tolist(), strict=True)
        )
        for offset, length, start in zip(offsets, lengths, at, strict=True):
            assert np.array_equal(memory[start : start + length], content.bytes[offset : offset + length])
    os.close(fd)
    ring.close()
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_more_requests_than_there_is_room_for_are_refused_whole(content, memory):
    ring = Ring(4)
    with open(content.path, "rb") as file:
        five = np.arange(5)
        with pytest.raises(ValueError, match="5 requests where there is room for 4"):
            ring.submit(file.fileno(), five * 100, five + 1, address(memory) + five * 100, five)
        assert ring.in_flight == 0
        assert ring.room == 4
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_an_error_of_a_read_is_its_result_and_the_others_go_on(content, memory):
    ring = Ring(8)
    unreadable = os.open(content.path, os.O_WRONLY)
    with open(content.path, "rb") as file:
        read_pipe(ring, unreadable, memory[100:])
        ring.submit(file.fileno(), ZERO, ZERO + 4, ZERO + address(memory), ZERO + 8)
        tags, results = ring.wait(2)
    assert dict(zip(tags.tolist(), results.tolist(), strict=True)) == {7: -errno.EBADF, 8: 4}
    assert text(memory) == content.bytes[:4].tobytes()
    os.close(unreadable)
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_wait_for_nothing_returns_at_once_and_wait_for_more_than_all_returns_all(pipe, memory):
    ring = Ring(4)
    assert len(ring.wait(3)[0]) == 0
    read_pipe(ring, pipe[0], memory)
    assert len(ring.wait(0)[0]) == 0
    os.write(pipe[1], b"here")
    assert [column.tolist() for column in ring.wait(100)] == [[7], [4]]
    assert text(memory) == b"here"
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_python_threads_run_while_the_ring_waits(pipe, memory):
    counter, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counter[0] += 1

    ring, thread = Ring(1), threading.Thread(target=count)
    read_pipe(ring, pipe[0], memory)
    writer = write_later(pipe[1], 0.3, "text")
    thread.start()
    before = counter[0]
    ring.wait(1)
    counted = counter[0] - before
    stop.set()
    thread.join()
    assert text(memory) == b"text"
    # With the lock held the thread would count nothing for as long as this waits.
    assert counted > 10_000
    writer.wait()
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_close_waits_for_what_the_kernel_still_writes(pipe, memory):
    ring = Ring(1)
    read_pipe(ring, pipe[0], memory)
    writer = write_later(pipe[1], 0.2, "late")
    ring.close()
    assert text(memory) == b"late"
    writer.wait()


@pytest.mark.usefixtures("needs_uring")
def test_a_signal_handlers_exception_ends_the_wait_and_loses_nothing(pipe, memory):
    def handler(number: int, frame: object) -> None:
        raise InterruptedError("by a test")

    before = signal.signal(signal.SIGUSR1, handler)
    ring = Ring(2)
    try:
        read_pipe(ring, pipe[0], memory)
        main = threading.main_thread().ident
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        with pytest.raises(InterruptedError):
            ring.wait(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ring.in_flight == 1
    os.write(pipe[1], b"late")
    assert ring.wait(1)[0].tolist() == [7]
    assert text(memory) == b"late"
    ring.close()


@pytest.mark.usefixtures("needs_uring")
def test_what_an_exception_kept_from_the_kernel_is_submitted_by_the_next_wait(content, memory, monkeypatch):
    ring = Ring(4)
    with open(content.path, "rb") as file:
        monkeypatch.setattr(ring, "_syscall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ring.submit(file.fileno(), ZERO, ZERO + 4, ZERO + address(memory), ZERO + 8)
        monkeypatch.undo()
        assert [column.tolist() for column in ring.wait(1)] == [[8], [4]]
    assert text(memory) == content.bytes[:4].tobytes()
    ring.close()


def interrupted(*arguments: int) -> int:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("needs_uring")
def test_a_kernel_short_of_memory_is_asked_again_after_a_completion(content, memory, pipe, monkeypatch):
    ring = Ring(4)
    real, refused = ring._syscall, []

    def short_of_memory(number: int, fd: int, submit: int, wanted: int, *rest: int) -> int:
        if submit and not refused:
            refused.append(submit)
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return real(number, fd, submit, wanted, *rest)

    read_pipe(ring, pipe[0], memory)
    monkeypatch.setattr(ring, "_syscall", short_of_memory)
    writer = write_later(pipe[1], 0.1, "done")
    with open(content.path, "rb") as file:
        ring.submit(file.fileno(), ZERO, ZERO + 4, ZERO + address(memory) + 4, ZERO + 8)
        assert text(memory) == b"done"
        assert sorted(ring.wait(2)[0].tolist()) == [7, 8]
        refused.clear()
        with pytest.raises(BlockingIOError):  # nothing runs, so nothing will give memory back
            ring.submit(file.fileno(), ZERO, ZERO + 4, ZERO + address(memory), ZERO)
    assert refused == [1]
    writer.wait()
    ring.close()


def refusing(code: int, flags: int | None = None) -> Callable[[], Callable[..., int]]:
    """A stand-in for the system call that refuses every ring, or those with these flags."""
    real = uring._syscall

    def make() -> Callable[..., int]:
        def call(number: int, entries: int, params: int, *rest: int) -> int:
            if number == SETUP:
                words = (ctypes.c_uint32 * 30).from_address(params)
                if flags is None or words[FLAGS] == flags:
                    ctypes.set_errno(code)
                    return -1
            return real()(number, entries, params, *rest)

        return call

    return make


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSYS, "not in this kernel"),
        (errno.EPERM, "not permitted"),
        (errno.EACCES, "not permitted"),
        (errno.ENOMEM, "ulimit -l"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_a_refusal_says_why(code, reason, monkeypatch):
    monkeypatch.setattr(uring, "_syscall", refusing(code))
    with pytest.raises(UringRefused, match=reason):
        Ring(8)


@pytest.mark.usefixtures("needs_uring")
def test_a_kernel_that_does_not_know_the_flag_still_makes_a_ring(content, memory, monkeypatch):
    monkeypatch.setattr(uring, "_syscall", refusing(errno.EINVAL, COOP_TASKRUN))
    ring = Ring(8)
    with open(content.path, "rb") as file:
        read_pipe(ring, file.fileno(), memory)
        assert ring.wait(1)[1].tolist() == [4]
    ring.close()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("platform", "darwin", "Linux"), ("getandroidapilevel", lambda: 34, "Android")],
)
def test_systems_without_it_are_not_asked(name, value, reason, monkeypatch):
    monkeypatch.setattr(uring.sys, name, value, raising=False)
    with pytest.raises(UringRefused, match=reason):
        Ring(8)


@pytest.mark.usefixtures("needs_uring")
def test_rings_give_back_their_files(content):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(20):
        Ring(4).close()
    deadline = time.monotonic() + 1
    while open_files() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert open_files() == before

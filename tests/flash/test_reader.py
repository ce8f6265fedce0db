"""A Reader with either engine against the file's bytes, and everything that can go wrong while it reads."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.flash import reader
from edgellm.flash.reader import Reader
from edgellm.flash.uring import UringRefused
from edgellm.kernels.memory import address
from tests.flash.conftest import Content, spans

BLOCK = 4096


def batch(content: Content, n: int, seed: int, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths of n random pieces, multiples of BLOCK inside the file."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, most + 1, n) * BLOCK
    return random.integers(0, (len(content.bytes) - lengths) // BLOCK) * BLOCK, lengths


def check(content, memory, offsets, lengths, addresses):
    for offset, length, start in zip(offsets, lengths, addresses - address(memory), strict=True):
        expected = content.bytes[offset : offset + length]
        assert np.array_equal(memory[start : start + len(expected)], expected)


@pytest.mark.parametrize("direct", [True, False])
def test_random_reads_bring_the_bytes_of_the_file(content, memory, engine, direct):
    offsets, lengths = batch(content, 700, seed=1)
    addresses = spans(memory, lengths)
    with Reader(content.path, engine=engine, direct=direct, depth=32, threads=8) as r:
        assert r.size == len(content.bytes)
        r.read(offsets, lengths, addresses)
    check(content, memory, offsets, lengths, addresses)


def test_long_requests_are_cut_and_put_together(content, memory, engine):
    lengths = np.array([40, 1, 16, 17, 33]) * BLOCK
    offsets = np.array([0, 2000, 100, 55, 1000]) * BLOCK
    addresses = spans(memory, lengths)
    with Reader(content.path, engine=engine, longest=16 * BLOCK, depth=4, threads=2) as r:
        ticket = r.start(offsets, lengths, addresses)
        r.wait(ticket)
    assert ticket.arrived.all()
    check(content, memory, offsets, lengths, addresses)


def test_several_batches_are_in_flight_and_waited_for_in_any_order(content, memory, engine):
    pieces = [batch(content, 60, seed) for seed in range(5)]
    lengths = np.concatenate([piece[1] for piece in pieces])
    addresses = np.split(spans(memory, lengths), 5)
    with Reader(content.path, engine=engine, depth=8, threads=4) as r:
        tickets = [r.start(*piece, where) for piece, where in zip(pieces, addresses, strict=True)]
        for i in (3, 0, 4, 1, 2):
            r.wait(tickets[i])
            assert tickets[i].arrived.all()
            check(content, memory, *pieces[i], addresses[i])
        assert r.poll() == []  # a batch that was waited for is not reported again


def test_poll_reports_each_request_once_with_its_bytes_in_place(content, memory, engine):
    offsets, lengths = batch(content, 200, seed=2)
    addresses = spans(memory, lengths)
    seen = {}
    with Reader(content.path, engine=engine, depth=16, threads=4, longest=3 * BLOCK) as r:
        tickets = [r.start(*(a[half::2] for a in (offsets, lengths, addresses))) for half in (0, 1)]
        while len(seen) < 200:
            found = r.poll(at_least=20)
            assert sum(len(which) for _, which in found) >= min(20, 200 - len(seen))
            for ticket, which in found:
                half = tickets.index(ticket)
                assert ticket.arrived[which].all()
                check(content, memory, *(a[half::2][which] for a in (offsets, lengths, addresses)))
                for i in which.tolist():
                    assert (half, i) not in seen
                    seen[half, i] = True
        assert r.poll(at_least=1) == []


def test_an_empty_batch_is_there_at_once(content, engine):
    with Reader(content.path, engine=engine, threads=1) as r:
        none = np.zeros(0, np.int64)
        r.wait(r.start(none, none, none))


@pytest.mark.parametrize("longest", [BLOCK // 4, BLOCK, 64 * BLOCK])
def test_the_last_piece_of_a_file_may_end_past_it(content, memory, engine, longest):
    last = len(content.bytes) // BLOCK * BLOCK
    with Reader(content.path, engine=engine, threads=1, longest=longest) as r:
        r.read([last - BLOCK], [2 * BLOCK], [address(memory)])
        r.read([last], [BLOCK], [address(memory) + 4 * BLOCK])
    tail = content.bytes[last - BLOCK :]
    assert np.array_equal(memory[: len(tail)], tail)
    assert np.array_equal(memory[4 * BLOCK : 4 * BLOCK + 1234], tail[BLOCK:])
    assert len(tail) == BLOCK + 1234
    assert not memory[4 * BLOCK + 2048 : 5 * BLOCK].any()


@pytest.mark.parametrize(
    ("offset", "length", "shift"),
    [(1, BLOCK, 0), (0, BLOCK - 1, 0), (0, BLOCK, 1), (BLOCK, 3 * BLOCK // 7, 8)],
)
def test_what_is_not_aligned_is_refused(content, memory, offset, length, shift, engine):
    with Reader(content.path, engine=engine, threads=1) as r:
        if not r.direct:
            pytest.skip(r.engine)
        with pytest.raises(EdgeError, match=rf"file: .* multiples of {r.alignment}"):
            r.start([offset], [length], [address(memory) + shift])


@pytest.mark.parametrize(("offset", "length"), [(-BLOCK, BLOCK), (16 << 20, BLOCK), (0, 16 << 20), (0, 0)])
def test_what_is_not_in_the_file_is_refused(content, memory, offset, length):
    with Reader(content.path) as r, pytest.raises(EdgeError, match=r"file: .* not in this file of 8389842"):
        r.start([offset], [length], [address(memory)])


class Shorten:
    """An engine whose reads bring less than they should, as the kernel may."""

    def __init__(self, engine, share):
        self._engine, self._share = engine, share

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def wait(self, at_least=0):
        tags, results = self._engine.wait(at_least)
        return tags, np.where(results > BLOCK, (results * self._share).astype(np.int64), results)


def test_short_reads_are_continued(content, memory, engine):
    offsets, lengths = batch(content, 50, seed=3, most=30)
    addresses = spans(memory, lengths)
    with Reader(content.path, engine=engine, depth=8, threads=4) as r:
        r._engine = Shorten(r._engine, 0.9)
        r.read(offsets, lengths // BLOCK * BLOCK, addresses)
    check(content, memory, offsets, lengths, addresses)


def test_short_preadv_results_are_continued(content, memory, monkeypatch):
    real, calls = os.preadv, []

    def short(fd, buffers, offset):
        calls.append(offset)
        return real(fd, [memoryview(buffers[0]).cast("B")[: max(BLOCK, len(buffers[0]) // 2)]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with Reader(content.path, engine="threads", threads=2) as r:
        r.read([0, 40 * BLOCK], [16 * BLOCK] * 2, spans(memory, [16 * BLOCK] * 2))
    check(content, memory, [0, 40 * BLOCK], [16 * BLOCK] * 2, spans(memory, [16 * BLOCK] * 2))
    assert len(calls) == 2 * 5  # 8, 4, 2, 1 and 1 blocks


def test_a_file_cut_while_it_is_read_is_one_sentence(content, memory, engine):
    with Reader(content.path, engine=engine, threads=2) as r:
        os.truncate(content.path, 1 << 20)
        with pytest.raises(EdgeError, match=r"file: ends at byte 1048576 .* 8389842 .* cut or replaced"):
            r.read([BLOCK, 1 << 20], [BLOCK, BLOCK], spans(memory, [BLOCK, BLOCK]))
        ticket = r.start([(1 << 20) - BLOCK], [4 * BLOCK], [address(memory)])
        with pytest.raises(EdgeError, match="ends at byte 1048576"):
            r.wait(ticket)
        with pytest.raises(EdgeError, match="replaced or changed"):
            r.check_unchanged()
        r.read([0], [BLOCK], [address(memory)])  # what is left can still be read


@pytest.mark.parametrize("replace", ["replaced", "removed", "rewritten"])
def test_a_file_replaced_while_it_is_read_is_noticed(content, memory, replace):
    with Reader(content.path) as r:
        r.check_unchanged()
        if replace == "replaced":
            other = content.path.with_name("other")
            content.bytes.tofile(other)
            os.replace(other, content.path)
        elif replace == "removed":
            content.path.unlink()
        else:
            time.sleep(0.02)  # longer than a tick of the kernel's clock for files
            content.path.write_bytes(content.bytes[::-1].tobytes())
        with pytest.raises(EdgeError, match="file: was replaced or changed"):
            r.check_unchanged()


def fail(monkeypatch, r, content):
    """From now on every read fails: with EIO in threads, with EBADF in the kernel, which no test patches."""
    if r.kind == "threads":

        def broken(fd, buffers, offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", broken)
        return "input/output error"
    write_only = os.open(content.path, os.O_WRONLY)
    os.dup2(write_only, r._fd)
    os.close(write_only)
    return "bad file descriptor"


def test_an_error_of_the_disk_is_one_sentence_once_all_has_settled(content, memory, engine, monkeypatch):
    offsets, lengths = batch(content, 100, seed=4)
    with Reader(content.path, engine=engine, depth=8, threads=4) as r:
        reason = fail(monkeypatch, r, content)
        ticket = r.start(offsets, lengths, spans(memory, lengths))
        with pytest.raises(EdgeError, match=rf"file: \d+ bytes at byte \d+ cannot be read \({reason}\)"):
            r.wait(ticket)
        assert r._engine.in_flight == 0 or r.kind == "threads"
        assert r.poll() == []  # an error that was raised is not raised again
        r.start(offsets, lengths, spans(memory, lengths))
        with pytest.raises(EdgeError, match=reason):
            r.poll(at_least=100)
        assert r.poll(at_least=1) == []


def test_a_failed_batch_leaves_the_others_alone(content, memory, engine):
    offsets, lengths = batch(content, 40, seed=5)
    addresses = spans(memory, lengths)
    with Reader(content.path, engine=engine, depth=4, threads=2) as r:
        unmapped = np.array([1 << 46])  # an address that is nobody's: EFAULT
        good = r.start(offsets, lengths, addresses)
        bad = r.start([0], [BLOCK], unmapped)
        with pytest.raises(EdgeError, match="bad address"):
            r.wait(bad)
        r.wait(good)
    check(content, memory, offsets, lengths, addresses)


def test_a_lost_thread_is_an_error_and_not_a_wait_for_ever(content, memory, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 1 // 0)
    with (
        Reader(content.path, engine="threads", threads=1) as r,
        pytest.raises(EdgeError, match="input/output"),
    ):
        r.read([0], [BLOCK], [address(memory)])


def test_an_interrupted_drain_is_an_error_and_not_a_wait_for_ever(content, memory, engine):
    with Reader(content.path, engine=engine, threads=2) as r:
        ticket = r.start([0, BLOCK], [BLOCK, BLOCK], spans(memory, [BLOCK, BLOCK]))
        r._engine.wait(2)  # what an exception between two lines would lose
        with pytest.raises(EdgeError, match=r"file: .*interrupted"):
            r.wait(ticket)


def test_close_waits_for_what_is_in_flight_and_drops_the_rest(content, memory, engine, monkeypatch):
    begun = []

    def slow(fd, buffers, offset):
        begun.append(offset)
        time.sleep(0.1)  # in the kernel, where the file's number no longer matters
        buffers[0][:] = bytes(len(buffers[0]))
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", slow)
    n = len(memory) // 2 // BLOCK
    r = Reader(content.path, engine=engine, depth=64, threads=4)
    ticket = r.start(np.arange(n) * BLOCK, np.full(n, BLOCK), address(memory) + np.arange(n) * BLOCK)
    while engine == "threads" and not begun:
        time.sleep(0.001)
    r.close()
    r.close()
    assert len(begun) in ((0,) if engine == "uring" else range(1, 9))
    memory[:] = 7
    time.sleep(0.2)  # longer than a slow read takes
    assert (memory == 7).all()
    for use in (lambda: r.start([0], [BLOCK], [address(memory)]), lambda: r.wait(ticket), r.poll):
        with pytest.raises(EdgeError, match=r"file: .*closed"):
            use()


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"depth": 5000}, {"threads": 0}, {"longest": 0}, {"longest": 2 << 30}]
)
def test_figures_that_make_no_reader_are_refused(content, wrong):
    with pytest.raises(EdgeError, match=r"1 to 4096 requests in flight|cut into multiples"):
        Reader(content.path, **wrong)


def test_a_forgotten_reader_is_closed(content, memory, engine):
    def open_files():
        return sorted(os.listdir("/proc/self/fd"))

    gc.collect()  # what other tests have left
    before = open_files()
    r = Reader(content.path, engine=engine, threads=2)
    r.start([0], [BLOCK], [address(memory)])
    assert len(open_files()) > len(before)
    del r
    gc.collect()
    assert open_files() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgellm-read")]


def test_python_threads_run_while_a_reader_waits(content, memory, monkeypatch):
    real, released = os.preadv, threading.Event()

    def blocked(fd, buffers, offset):
        assert released.wait(20)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", blocked)
    with Reader(content.path, engine="threads", threads=1) as r:
        ticket = r.start([0], [BLOCK], [address(memory)])
        threading.Timer(0.1, released.set).start()  # another Python thread: it must get to run
        r.wait(ticket)
    check(content, memory, [0], [BLOCK], np.array([address(memory)]))


def test_reads_by_native_code_go_on_while_nobody_looks(content, memory, engine):
    """The batch fits the depth, so it arrives without another call of the Reader."""
    with Reader(content.path, engine=engine, depth=32, threads=4) as r:
        r.start(np.arange(32) * BLOCK, np.full(32, BLOCK), address(memory) + np.arange(32) * BLOCK)
        deadline = time.monotonic() + 10
        while not np.array_equal(memory[: 32 * BLOCK], content.bytes[: 32 * BLOCK]):
            ctypes.CDLL(None).usleep(1000)
            assert time.monotonic() < deadline


def test_without_io_uring_threads_read_and_say_why(content, memory, monkeypatch):
    def refused(depth):
        raise UringRefused("is not permitted here")

    monkeypatch.setattr(reader, "Ring", refused)
    with Reader(content.path, threads=3) as r:
        assert r.kind == "threads"
        assert r.engine.startswith("3 threads (io_uring is not permitted here), ")
        r.read([0], [BLOCK], [address(memory)])
    check(content, memory, [0], [BLOCK], np.array([address(memory)]))
    with pytest.raises(EdgeError, match="io_uring is not permitted here"):
        Reader(content.path, engine="uring")


def test_the_engine_is_told(content, engine):
    with Reader(content.path, engine=engine, threads=2, direct=False) as r:
        assert r.kind == engine
        expected = {"uring": "io_uring", "threads": "2 threads"}[engine]
        assert r.engine == f"{expected}, through the page cache as asked"
        assert not r.direct
    with pytest.raises(EdgeError, match="no engine 'tape'"):
        Reader(content.path, engine="tape")


@pytest.mark.parametrize("how", ["sys.exit()", "raise KeyboardInterrupt", "del r"])
def test_a_program_may_end_while_it_reads(content, engine, how):
    code = f"""
import sys, numpy as np
from edgellm.flash.reader import Reader
from edgellm.kernels.memory import address, reserve
area = reserve(8 << 20, False, "a test")
r = Reader({str(content.path)!r}, engine={engine!r}, threads=4, depth=32)
blocks = np.arange(2048) * 4096
r.start(blocks, np.full(2048, 4096), address(area) + blocks)
{how}
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = process.stderr.splitlines()
    assert [line for line in lines if "Error" in line or "Fatal" in line] == []
    assert process.returncode == (-signal.SIGINT if "Keyboard" in how else 0)

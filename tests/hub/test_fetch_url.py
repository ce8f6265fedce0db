"""Pulling from an address: whole, cut, resumed, changed, slow, wrong, and never half-written."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import EdgeError
from edgellm.hub import fetch_url, store
from edgellm.hub.pull import pull
from tests.hub.webserver import Page, Server, gguf_bytes, leftovers

DATA = gguf_bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_file_arrives_whole_with_its_record(server: Server, cache: Path) -> None:
    server.pages["/m.gguf"] = Page(DATA)
    record = pull(server.url("/m.gguf"))
    assert record.path == cache / "models" / "m" / "m.gguf"
    assert record.path.read_bytes() == DATA
    assert (record.sha256, record.bytes, record.name) == (SHA256, len(DATA), "m")
    assert leftovers(cache) == ["m.gguf", "record.json"]


def test_second_pull_asks_the_server_nothing(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA)
    first = pull(server.url("/m.gguf"))
    assert pull(server.url("/m.gguf")) == first
    assert len(server.requests) == 1


def test_cut_connection_goes_on_within_one_pull(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, cuts=[100_000, 50_000])
    assert pull(server.url("/m.gguf"), sha256=SHA256).path.read_bytes() == DATA
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]


def test_next_pull_goes_on_where_the_last_one_broke_off(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(
        EdgeError, match=r"broke off \(HTTP 503\) after 70000 of 300000 bytes.*goes on from there"
    ):
        pull(server.url("/m.gguf"))
    assert leftovers(cache) == ["m.gguf.part", "m.gguf.part.json"]
    page.statuses.clear()
    server.requests.clear()
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges() == ["bytes=70000-"]
    assert leftovers(cache) == ["m.gguf", "record.json"]


def test_last_modified_serves_where_there_is_no_etag(server: Server) -> None:
    stamp = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.pages["/m.gguf"] = Page(DATA, etag=None, last_modified=stamp, cuts=[70_000])
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.requests[1][2]["If-Range"] == stamp


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_it_starts_over(server: Server, etag: str | None) -> None:
    server.pages["/m.gguf"] = Page(DATA, etag=etag, cuts=[70_000])
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges() == [None, None]


def test_server_without_ranges_starts_over(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, ranges=False, cuts=[70_000])
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges() == [None, "bytes=70000-"]


def test_file_that_changed_on_the_server_is_not_spliced(server: Server) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"))
    new = gguf_bytes(200_000, seed=1)
    page.content, page.etag, page.statuses = new, '"v2"', []
    assert pull(server.url("/m.gguf")).path.read_bytes() == new


def test_shorter_file_on_the_server_is_not_spliced(server: Server) -> None:
    """A server that ignores If-Range answers 416 to a range past the end of the new file."""
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"))
    page.content, page.statuses = gguf_bytes(50_000, seed=1), []
    assert pull(server.url("/m.gguf")).path.read_bytes() == page.content


def test_part_that_was_complete_already_needs_no_byte(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"))
    sidecar = cache / "models" / "m" / "m.gguf.part.json"
    sidecar.write_text(sidecar.read_text().replace("70000", str(len(DATA))))
    sidecar.with_suffix("").write_bytes(DATA)
    page.statuses = []
    assert pull(server.url("/m.gguf"), sha256=SHA256).path.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={len(DATA)}-"


def test_wrong_range_is_not_spliced(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], shift_range=-10)
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA


def test_wrong_checksum_names_both_sums_and_removes_the_file(server: Server, cache: Path) -> None:
    server.pages["/m.gguf"] = Page(DATA)
    wanted = "0" * 64
    with pytest.raises(EdgeError, match=f"expected sha256 {wanted} but got {SHA256}"):
        pull(server.url("/m.gguf"), sha256=wanted)
    assert leftovers(cache) == []


def test_checksum_covers_the_resumed_part_too(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"), sha256=SHA256)
    part = cache / "models" / "m" / "m.gguf.part"
    part.write_bytes(b"GGUF" + bytes(69_996))
    page.statuses = []
    with pytest.raises(EdgeError, match="wrong checksum"):
        pull(server.url("/m.gguf"), sha256=SHA256)
    assert leftovers(cache) == []


@pytest.mark.parametrize(("status", "message"), [(404, "no such file"), (403, "access denied"), (451, "451")])
def test_refusals_are_not_retried(server: Server, cache: Path, status: int, message: str) -> None:
    server.pages["/m.gguf"] = Page(DATA, statuses=[status])
    with pytest.raises(EdgeError, match=message):
        pull(server.url("/m.gguf"))
    assert len(server.requests) == 1
    assert leftovers(cache) == []
    assert not (cache / "models" / "m").exists()


def test_busy_server_is_asked_again(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, statuses=[503, 429])
    assert pull(server.url("/m.gguf")).bytes == len(DATA)


def test_nobody_listening_is_one_sentence(server: Server, cache: Path) -> None:
    url = server.url("/m.gguf")
    server.close()
    with pytest.raises(EdgeError, match=r"cannot fetch it \(.*refused.*\); check the network"):
        pull(url)
    assert leftovers(cache) == []


def test_web_page_in_place_of_a_model_is_refused(server: Server, cache: Path) -> None:
    server.pages["/m.gguf"] = Page(b"<!doctype html>please log in")
    with pytest.raises(EdgeError, match="not a GGUF file"):
        pull(server.url("/m.gguf"))
    assert leftovers(cache) == []


def test_slow_server_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole transfer takes longer than the time-out, which is between two bytes."""
    monkeypatch.setattr(fetch_url, "TIMEOUT_S", 0.4)
    server.pages["/m.gguf"] = Page(DATA, chunk=60_000, pause_s=0.12)
    began = time.perf_counter()
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert time.perf_counter() - began > 0.5
    assert len(server.requests) == 1


def test_stalled_server_ends_in_one_sentence(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_url, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(fetch_url, "ATTEMPTS", 2)
    server.pages["/m.gguf"] = Page(DATA, chunk=1000, pause_s=0.5)
    with pytest.raises(EdgeError, match=r"nothing arrived for 0\.1 s"):
        pull(server.url("/m.gguf"))
    assert leftovers(cache) == []


def test_length_may_be_unknown(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, declare_length=False)
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA


def test_redirect_to_plain_http_elsewhere_is_refused(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, statuses=[302], headers={"Location": "http://example.org/m.gguf"})
    with pytest.raises(EdgeError, match="plain http"):
        pull(server.url("/m.gguf"))


def test_redirect_on_the_same_machine_is_followed(server: Server) -> None:
    server.pages["/m.gguf"] = Page(DATA, statuses=[302], headers={"Location": "/real.gguf"})
    server.pages["/real.gguf"] = Page(DATA)
    record = pull(server.url("/m.gguf"))
    assert record.path.name == "m.gguf"
    assert record.sha256 == SHA256


def test_full_disk_is_known_before_the_first_byte(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/m.gguf"] = Page(DATA)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, store.SPARE + len(DATA) - 1))
    with pytest.raises(EdgeError, match=r"needs 300\.0 kB but .* free some space"):
        pull(server.url("/m.gguf"))
    assert leftovers(cache) == []


def test_disk_that_fills_up_keeps_only_a_part_to_go_on_from(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/m.gguf"] = Page(DATA)
    limit = 100_000

    class SmallDisk(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: limit - self.tell()])

    def open_small(path: Path, mode: str, buffering: int) -> io.FileIO:
        return SmallDisk(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(store, "open", open_small, raising=False)
        with pytest.raises(EdgeError, match="No space left on device"):
            pull(server.url("/m.gguf"))
    assert leftovers(cache) == ["m.gguf.part", "m.gguf.part.json"]
    assert pull(server.url("/m.gguf"), sha256=SHA256).path.read_bytes() == DATA
    offset = int((server.ranges()[-1] or "").removeprefix("bytes=").removesuffix("-"))
    assert 0 < offset <= limit


def test_bytes_that_a_power_cut_may_have_lost_are_fetched_again(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"))
    with (cache / "models" / "m" / "m.gguf.part").open("ab") as part:
        part.write(bytes(1000))  # behind what was synced: a length without its data
    page.statuses = []
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=70000-"


def test_torn_sidecar_starts_over(server: Server, cache: Path) -> None:
    page = server.pages["/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"))
    (cache / "models" / "m" / "m.gguf.part.json").write_text('{"url": "')
    page.statuses = []
    assert pull(server.url("/m.gguf")).path.read_bytes() == DATA
    assert server.ranges()[-1] is None


def test_another_address_does_not_go_on_from_this_part(server: Server) -> None:
    server.pages["/a/m.gguf"] = Page(DATA, cuts=[70_000], statuses=[200] + [503] * fetch_url.ATTEMPTS)
    with pytest.raises(EdgeError):
        pull(server.url("/a/m.gguf"))
    other = gguf_bytes(100_000, seed=2)
    server.pages["/b/m.gguf"] = Page(other)
    assert pull(server.url("/b/m.gguf")).path.read_bytes() == other
    assert server.ranges()[-1] is None


def test_failed_forced_pull_leaves_the_old_model(server: Server) -> None:
    page = server.pages["/m.gguf"] = Page(DATA)
    record = pull(server.url("/m.gguf"))
    page.statuses = [404]
    with pytest.raises(EdgeError):
        pull(server.url("/m.gguf"), force=True)
    assert record.path.read_bytes() == DATA


def test_forced_pull_replaces_the_model(server: Server) -> None:
    page = server.pages["/m.gguf"] = Page(DATA)
    pull(server.url("/m.gguf"))
    page.content, page.etag = gguf_bytes(1000, seed=3), '"v2"'
    record = pull(server.url("/m.gguf"), force=True)
    assert record.path.read_bytes() == page.content
    assert record.bytes == 1000

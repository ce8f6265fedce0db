"""Fetch a file over https, going on where a cut connection stopped (RFC 9110, sections 14.2 and 13.1.5).

Beside `<file>.part` lies `<file>.part.json`: which address it is from, the server's validator for that
content (a strong ETag, else Last-Modified) and how many of its bytes were synced to disk. A later run asks
for the rest with Range and If-Range, so that a file that changed on the server starts over rather than being
spliced.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from edgellm.errors import EdgeError
from edgellm.hub.progress import Advance, byte_bar
from edgellm.hub.sources import UrlSource, check_url, is_loopback
from edgellm.hub.store import CHUNK, Expected, Fetched, Part, disk_errors, require_space

TIMEOUT_S = 30.0  # without one byte
ATTEMPTS = 4  # in a row that bring less than a chunk
BACKOFF_S = 0.5  # doubled after each of them
SYNC_BYTES = 32 << 20  # at most this much is fetched again after a power cut
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The transfer stopped for a reason that another attempt may not meet."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target = urljoin(req.full_url, newurl)
        check_url(target)
        if req.type == "https" and urlsplit(target).scheme != "https":
            raise EdgeError(f"{_shown(req.full_url)}: the server redirects to an address without encryption.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_url(source: UrlSource, target: Path, expected: Expected, show: bool) -> Fetched:
    """Fetch `source` to the file `target`.

    Raises EdgeError: no such file, no network, a full disk, a wrong checksum. After a broken connection the
    part stays for the next run if the server can continue it.
    """
    with Part(target, source.label) as part, byte_bar(source.file_name, show) as advance:
        transfer = _Transfer(source, part, expected, advance)
        try:
            transfer.run()
            return part.commit(expected)
        finally:
            transfer.close()


class _Transfer:
    """One file on its way: the part, what its sidecar says, and the attempts to complete it."""

    def __init__(self, source: UrlSource, part: Part, expected: Expected, advance: Advance) -> None:
        self.source, self.part, self.expected, self.advance = source, part, expected, advance
        self.sidecar = part.path.with_name(part.path.name + ".json")
        self.url_id = hashlib.sha256(source.url.encode()).hexdigest()  # the address itself may hold a secret
        self.total: int | None = None
        self.validator, synced = self._read_sidecar()
        self.synced = 0
        part.resume(synced)
        part.keep = self.validator is not None
        proxies: dict[str, str] | None = {} if is_loopback(urlsplit(source.url).hostname or "") else None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _CheckedRedirects)

    def run(self) -> None:
        failures, best = 0, self.part.size
        while True:
            try:
                return self._attempt()
            except _Interrupted as interruption:
                failures = 0 if self.part.size >= best + CHUNK else failures + 1
                best = max(best, self.part.size)
                if failures >= ATTEMPTS:
                    raise self._given_up(interruption) from interruption
                time.sleep(BACKOFF_S * 2**failures)

    def close(self) -> None:
        """Keep what can be continued; the part's own exit removes it otherwise."""
        if self.part.keep and self.part.size:
            self._checkpoint()
        else:
            self.sidecar.unlink(missing_ok=True)

    def _given_up(self, interruption: _Interrupted) -> EdgeError:
        label, size = self.source.label, self.part.size
        if size == 0:
            return EdgeError(f"{label}: cannot fetch it ({interruption}); check the network and the address.")
        of = "" if self.total is None else f" of {self.total}"
        then = "goes on from there" if self.part.keep else "starts over"
        return EdgeError(
            f"{label}: the transfer broke off ({interruption}) after {size}{of} bytes; "
            f"the same command {then}."
        )

    def _attempt(self) -> None:
        offset = self.part.size
        headers = {"User-Agent": "edgellm", "Accept-Encoding": "identity"}
        if offset and self.validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": self.validator}
        elif offset:
            self._restart()
        try:
            response = self.opener.open(
                urllib.request.Request(self.source.url, headers=headers), timeout=TIMEOUT_S
            )
        except urllib.error.HTTPError as error:
            with error:
                if self._complete_already(error):
                    return
                raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise EdgeError(
                    f"{self.source.label}: the server's certificate cannot be verified "
                    f"({reason.verify_message}); SSL_CERT_FILE can name your own certificate store."
                ) from error
            raise _Interrupted(_reason(reason)) from error
        with response:
            self._begin(response.status, response.headers)
            self._receive(response)

    def _complete_already(self, error: urllib.error.HTTPError) -> bool:
        """416 to a request for what follows the last byte: nothing is missing."""
        length = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        return bool(error.code == 416 and self.part.size and length and int(length[1]) == self.part.size)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        if error.code == 416:  # the part is not of this file
            self._restart()
            return _Interrupted("the server has a different file now")
        if error.code in _RETRY_STATUS:
            return _Interrupted(f"HTTP {error.code}")
        self.part.keep = False
        meanings = {401: "it wants a login", 403: "access denied", 404: "no such file", 410: "it was removed"}
        meaning = meanings.get(error.code, error.reason)
        return EdgeError(
            f"{self.source.label}: the server answered HTTP {error.code} ({meaning}); check the address."
        )

    def _begin(self, status: int, headers: Message) -> None:
        """Read what the response says of the file; start over unless it continues the part."""
        label, offset = self.source.label, self.part.size
        if status == 206:
            spec = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if not offset or spec is None or int(spec[1]) != offset:
                self._restart()
                raise _Interrupted("the server sent another range than it was asked for")
            self.total = None if spec[2] == "*" else int(spec[2])
        elif status == 200:
            self._restart()
            length = headers.get("Content-Length", "")
            self.total = int(length) if length.isascii() and length.isdigit() else None
            self.validator = _validator(headers)
        else:
            raise EdgeError(
                f"{label}: the server answered HTTP {status} in place of the file; check the address."
            )
        if self.total is not None:
            self.expected.check_size(self.total, label)
        require_space(self.part.path.parent, (self.total or self.expected.size or 0) - self.part.size, label)
        self.part.keep = self.validator is not None
        self._checkpoint()

    def _receive(self, response: http.client.HTTPResponse) -> None:
        limit = self.total if self.total is not None else self.expected.size
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(_reason(error)) from error
            if not chunk:
                break
            if limit is not None and self.part.size + len(chunk) > limit:
                self.part.keep = False
                raise EdgeError(
                    f"{self.source.label}: the server sends more than the {limit} bytes expected."
                )
            self.part.write(chunk)
            self.advance(self.part.size, self.total)
            if self.part.size - self.synced >= SYNC_BYTES:
                require_space(self.part.path.parent, 0, self.source.label)  # the size may be unknown
                self._checkpoint()
        if self.total is not None and self.part.size < self.total:
            raise _Interrupted("the connection closed early")

    def _restart(self) -> None:
        self.part.resume(0)
        self.part.keep = False
        self.synced = 0

    def _checkpoint(self) -> None:
        self.part.sync()
        self.synced = self.part.size
        state = {"url": self.url_id, "validator": self.validator, "synced": self.synced}
        with disk_errors(self.sidecar):
            self.sidecar.write_text(json.dumps(state), encoding="utf-8")

    def _read_sidecar(self) -> tuple[str | None, int]:
        """(validator, bytes to keep) of an earlier run; nothing to keep when in doubt."""
        try:
            state = json.loads(self.sidecar.read_text(encoding="utf-8"))
            validator, synced = state["validator"], state["synced"]
            if state["url"] == self.url_id and isinstance(validator, str) and isinstance(synced, int):
                return validator, max(synced, 0)
        except (OSError, ValueError, KeyError, TypeError):  # none, torn by a power cut, or another version's
            pass
        return None, 0


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag", "")
    if etag.startswith('"'):  # a weak one (W/"...") does not promise the same bytes
        return etag
    return headers.get("Last-Modified")


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing arrived for {TIMEOUT_S:g} s"
    return str(error) or type(error).__name__


def _shown(url: str) -> str:
    return url.split("?", 1)[0]

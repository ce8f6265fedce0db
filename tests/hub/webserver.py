"""A loopback web server that can misbehave, and bytes that pass for a model file."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def gguf_bytes(n_bytes: int, seed: int = 0) -> bytes:
    """Bytes that begin like a GGUF file and repeat nowhere."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(n_bytes // 32 + 1))
    return (b"GGUF" + b"".join(blocks))[:n_bytes]


def leftovers(cache: Path) -> list[str]:
    """Names of the files under the cache, but for locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


@dataclass
class Page:
    """One address of the server and how it misbehaves."""

    content: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # per request: close after so many bytes of the body
    statuses: list[int] = field(default_factory=list)  # per request: answer with this in place of the file
    chunk: int = 1 << 16
    pause_s: float = 0.0  # before every chunk
    headers: dict[str, str] = field(default_factory=dict)
    shift_range: int = 0  # answers a range that begins so much later (or earlier) than asked
    declare_length: bool = True


class Server:
    """Serves `pages`; `requests` holds (method, path, headers) of every request so far."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str, Message]] = []
        handler = type("Handler", (_Handler,), {"site": self})
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._httpd.daemon_threads = True
        if tls is not None:
            self._httpd.socket = tls.wrap_socket(
                self._httpd.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.root = f"http{'s' if tls else ''}://127.0.0.1:{self._httpd.server_address[1]}"

    def url(self, path: str) -> str:
        return self.root + path

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, _, headers in self.requests]

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    site: Server

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        self.site.requests.append((self.command, self.path, self.headers))
        page = self.site.pages.get(self.path.split("?")[0])
        status = 404 if page is None else page.statuses.pop(0) if page.statuses else 200
        if page is None or status != 200:
            self.send_response(status)
            for key, value in (page.headers if page else {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, start = page.content, 0
        validator = page.etag or page.last_modified
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and page.ranges and self.headers.get("If-Range", validator) == validator:
            start = int(asked[1]) + page.shift_range
            status = 206 if start < len(data) else 416
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(data)}")
        rest = b"" if status == 416 else data[start:]
        if page.declare_length:
            self.send_header("Content-Length", str(len(rest)))
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.last_modified:
            self.send_header("Last-Modified", page.last_modified)
        for key, value in page.headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self._send(rest[: page.cuts.pop(0)] if page.cuts else rest, page)

    def _send(self, data: bytes, page: Page) -> None:
        try:
            for at in range(0, len(data), page.chunk):
                time.sleep(page.pause_s)
                self.wfile.write(data[at : at + page.chunk])
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):  # the client gave up, or was killed
            pass
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

"""Pulling over TLS from a server with a certificate of its own making."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.hub.pull import pull
from tests.hub.webserver import Page, Server, gguf_bytes

DATA = gguf_bytes(50_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key for 127.0.0.1 in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(
        [openssl, "req", "-x509", *key, *name, "-keyout", path.with_suffix(".key"), "-out", path],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + path.with_suffix(".key").read_bytes())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    site = Server(context)
    site.pages["/m.gguf"] = Page(DATA)
    yield site
    site.close()


def test_certificate_that_nobody_vouches_for_is_refused(tls_server: Server) -> None:
    with pytest.raises(EdgeError, match=r"certificate cannot be verified \(.*\); SSL_CERT_FILE"):
        pull(tls_server.url("/m.gguf"))
    assert tls_server.requests == []


def test_certificate_of_ones_own_store_is_accepted(
    tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert pull(tls_server.url("/m.gguf")).path.read_bytes() == DATA


def test_redirect_away_from_tls_is_refused(
    tls_server: Server, server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.pages["/m.gguf"] = Page(DATA)
    page = tls_server.pages["/m.gguf"]
    page.statuses, page.headers = [302], {"Location": server.url("/m.gguf")}
    with pytest.raises(EdgeError, match="redirects to an address without encryption"):
        pull(tls_server.url("/m.gguf"))
    assert server.requests == []

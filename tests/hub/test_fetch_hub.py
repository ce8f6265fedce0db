"""Pulling from a Hugging Face repository: the real huggingface_hub against a stand-in hub on loopback."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.errors import EdgeError
from edgellm.hub.pull import pull
from tests.hub.webserver import Page, Server, gguf_bytes, leftovers

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.file_download")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/Small-Model"
GGUF = gguf_bytes(150_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"the same weights",
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"code",
    "onnx/config.json": b"{}",
    "README.md": b"# Small",
    "small-Q8_0.gguf": GGUF,
}
LARGE = (".safetensors", ".gguf", ".bin")


class Hub(Server):
    """The few addresses of the hub's API that a download uses, for one repository."""

    def __init__(self) -> None:
        super().__init__()
        self.files = dict(FILES)
        self.sums: dict[str, str] = {}  # sha256 that the listing gives in place of the right one
        self.publish()

    def publish(self) -> None:
        siblings, tree = [], []
        for name, content in self.files.items():
            sha256 = self.sums.get(name, hashlib.sha256(content).hexdigest())
            size, oid = len(content), hashlib.sha1(content).hexdigest()
            sibling = {"rfilename": name, "size": size, "blobId": oid}
            entry = {"type": "file", "path": name, "size": size, "oid": oid}
            if name.endswith(LARGE):
                sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
            siblings.append(sibling)
            tree.append(entry)
            etag = sha256 if name.endswith(LARGE) else oid
            self.pages[f"/{REPO}/resolve/{COMMIT}/{name}"] = Page(
                content, etag=f'"{etag}"', headers={"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            )
        info = {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}, "tags": []}
        as_json = {"Content-Type": "application/json"}
        for path in (
            f"/api/models/{REPO}",
            f"/api/models/{REPO}/revision/v1",
            f"/api/models/{REPO}/revision/{COMMIT}",
        ):
            self.pages[path] = Page(json.dumps(info).encode(), etag=None, headers=as_json)
        self.pages[f"/api/models/{REPO}/tree/{COMMIT}"] = Page(
            json.dumps(tree).encode(), etag=None, headers=as_json
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    site = Hub()
    # HF_ENDPOINT is read when huggingface_hub is imported, which another test may have done.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.root)
    template = site.root + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # 0.x has it in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield site
    site.close()


def test_one_file_arrives_verified_with_its_licence(hub: Hub, cache: Path) -> None:
    record = pull(f"hf:{REPO}/small-Q8_0.gguf")
    assert record.path.read_bytes() == GGUF
    assert (record.name, record.licence) == ("small-q8_0", "mit")
    assert record.sha256 == hashlib.sha256(GGUF).hexdigest()
    assert leftovers(cache) == ["record.json", "small-Q8_0.gguf"]


def test_revision_is_asked_for(hub: Hub) -> None:
    assert pull(f"hf:{REPO}@v1/small-Q8_0.gguf").source == f"hf:{REPO}@v1/small-Q8_0.gguf"
    assert any("/revision/v1" in path for _, path, _ in hub.requests)


def test_repository_arrives_as_a_folder_of_data(hub: Hub, cache: Path) -> None:
    record = pull(f"hf:{REPO}")
    assert record.name == "small-model"
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in record.path.iterdir()) == names
    for name in names:
        assert (record.path / name).read_bytes() == FILES[name]
    assert leftovers(cache) == [*names[:2], "record.json", names[2]]
    assert not any(".bin" in path or ".py" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("source", [f"hf:{REPO}", f"hf:{REPO}/small-Q8_0.gguf"])
def test_wrong_checksum_leaves_no_model(hub: Hub, cache: Path, source: str) -> None:
    wrong = "2" * 64
    hub.sums = {"model.safetensors": wrong, "small-Q8_0.gguf": wrong}
    hub.publish()
    with pytest.raises(EdgeError, match=f"wrong checksum, expected sha256 {wrong} but got"):
        pull(source)
    assert not [name for name in leftovers(cache) if name.endswith((".gguf", ".safetensors", "record.json"))]


def test_missing_file_names_those_there(hub: Hub) -> None:
    with pytest.raises(EdgeError, match=r"no such file; name one of its GGUF files: small-Q8_0\.gguf"):
        pull(f"hf:{REPO}/other.gguf")


def test_repository_without_safetensors_names_its_ggufs(hub: Hub) -> None:
    del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]
    hub.publish()
    with pytest.raises(
        EdgeError, match=r"no safetensors model; name one of its GGUF files: small-Q8_0\.gguf"
    ):
        pull(f"hf:{REPO}")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no such repository"),
        (401, "RepoNotFound", "no such repository"),
        (403, "GatedRepo", "access is gated"),
        (404, "RevisionNotFound", "no such revision"),
        (500, "", "HTTP 500"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(
    hub: Hub, cache: Path, status: int, code: str, message: str
) -> None:
    page = hub.pages[f"/api/models/{REPO}"]
    page.statuses, page.headers = [status] * 10, {"X-Error-Code": code}
    with pytest.raises(EdgeError, match=message) as error:
        pull(f"hf:{REPO}/small-Q8_0.gguf")
    assert "\n" not in str(error.value)
    assert leftovers(cache) == []


def test_hub_out_of_reach_is_one_sentence(hub: Hub) -> None:
    hub.close()
    with pytest.raises(EdgeError, match=r"the transfer from the hub failed .* check the network") as error:
        pull(f"hf:{REPO}/small-Q8_0.gguf")
    assert "\n" not in str(error.value)


def test_offline_mode_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if hasattr(huggingface_hub.utils, "reset_sessions"):  # 0.x looks at the setting once per session
        huggingface_hub.utils.reset_sessions()
        request.addfinalizer(huggingface_hub.utils.reset_sessions)
    with pytest.raises(EdgeError, match="HF_HUB_OFFLINE"):
        pull(f"hf:{REPO}/small-Q8_0.gguf")


def test_connection_that_breaks_in_the_file_goes_on(hub: Hub) -> None:
    hub.pages[f"/{REPO}/resolve/{COMMIT}/small-Q8_0.gguf"].cuts = [60_000]
    if int(huggingface_hub.__version__.split(".")[0]) < 1:  # 0.x does not try again by itself
        with pytest.raises(EdgeError, match="the transfer from the hub failed"):
            pull(f"hf:{REPO}/small-Q8_0.gguf")
    assert pull(f"hf:{REPO}/small-Q8_0.gguf").path.read_bytes() == GGUF
    gets = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(gets) == 2


def test_full_disk_is_known_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(EdgeError, match=r"needs 150\.0 kB but"):
        pull(f"hf:{REPO}/small-Q8_0.gguf")
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_disk_that_fills_up_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(EdgeError, match=r"No space left on device.* free some space"):
        pull(f"hf:{REPO}/small-Q8_0.gguf")


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EdgeError, match="pip install huggingface_hub"):
        pull(f"hf:{REPO}/small-Q8_0.gguf")

"""How a file is opened where there are direct reads and where there are none, and which mount it is on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.flash import files
from edgellm.flash.files import Mount, mount_of
from edgellm.flash.reader import Reader
from edgellm.kernels.memory import address


def test_a_file_system_without_direct_reads_is_read_through_the_cache(content, memory, monkeypatch):
    real = os.open

    def no_direct(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest)

    monkeypatch.setattr(files.os, "open", no_direct)
    with Reader(content.path) as r:
        assert not r.direct
        assert r.alignment == 1
        assert "has no O_DIRECT" in r.engine
        r.read([7], [1001], [address(memory) + 3])
    assert np.array_equal(memory[3:1004], content.bytes[7:1008])


@pytest.mark.skipif(mount_of(Path("/dev/shm")).kind != "tmpfs", reason="needs a tmpfs")
def test_files_in_memory_are_read_through_the_cache():
    path = Path(f"/dev/shm/edgellm-test-{os.getpid()}")
    path.write_bytes(b"text")
    try:
        with Reader(path) as r:
            assert r.engine.endswith("through the page cache (tmpfs has no other place)")
    finally:
        path.unlink()


def test_the_alignment_is_the_kernels(content, monkeypatch):
    with Reader(content.path) as r:
        if not r.direct:
            pytest.skip(r.engine)
        assert r.alignment & (r.alignment - 1) == 0
        assert os.statvfs(content.path).f_bsize % r.alignment == 0
    monkeypatch.setattr(files, "_DIOALIGN", 1 << 31)  # a bit that no kernel answers
    with Reader(content.path) as r:
        assert r.alignment == 4096


@pytest.mark.parametrize(("name", "reason"), [("missing", "no such file"), (".", "not a regular file")])
def test_what_cannot_be_opened_is_one_sentence(tmp_path, name, reason):
    with pytest.raises(EdgeError, match=rf"cannot be read \({reason}"):
        Reader(tmp_path / name)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="not a regular file"):
        Reader(tmp_path / "pipe")


def test_the_mount_is_the_one_that_hides_the_others(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:21 / /mnt rw - tmpfs none rw\n"
        "24 22 8:17 / /mnt/two\\040words rw - f2fs /dev/block/sdb1 rw\n"
        "25 22 8:33 / /mnt rw shared:2 master:1 - xfs /dev/sdc1 rw\n"
    )
    assert mount_of(Path("/home"), table) == Mount("ext4", "/dev/sda1")
    assert mount_of(Path("/mnt/a"), table) == Mount("xfs", "/dev/sdc1")
    assert mount_of(Path("/mnt/two words/a"), table) == Mount("f2fs", "/dev/block/sdb1")
    assert mount_of(Path("/mnt/two"), table) == Mount("xfs", "/dev/sdc1")
    assert mount_of(Path("/"), tmp_path / "missing") == Mount("unknown", "unknown")

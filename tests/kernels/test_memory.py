"""Aligned arrays, reservations that cost nothing until touched, and pages given back."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.kernels.memory import (
    CAN_MAP_OVER,
    HUGE_PAGE,
    address,
    aligned,
    map_over,
    memory_limit,
    release_code,
    release_pages,
    reserve,
)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_aligned_arrays_are_zero_and_start_on_the_boundary() -> None:
    for count in (1, 7, 1000):
        array = aligned(count, np.float32)
        assert address(array) % 64 == 0
        assert array.shape == (count,)
        assert not array.any()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_reservation_takes_memory_only_where_it_is_touched() -> None:
    before = resident_bytes()
    area = reserve(1 << 32, huge_pages=False, what="a test")
    assert address(area) % HUGE_PAGE == 0
    area[:: 1 << 30] = 1
    assert resident_bytes() - before < 16 << 20


def test_impossible_reservation_is_one_sentence() -> None:
    with pytest.raises(EdgeError, match=r"No memory for the KV cache: .* MiB were refused"):
        reserve(1 << 60, huge_pages=False, what="the KV cache")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_released_pages_leave_memory_and_keep_their_content(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 64 << 20, dtype=np.uint8)
    content.tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")[100:]
    total = int(mapped.sum(dtype=np.int64))
    full = resident_bytes()
    release_pages(mapped)
    assert full - resident_bytes() > 60 << 20
    assert int(mapped.sum(dtype=np.int64)) == total


@pytest.mark.skipif(not CAN_MAP_OVER, reason="needs a POSIX system")
def test_mapped_file_takes_the_place_of_a_reservation(tmp_path: Path) -> None:
    area = reserve(3 << 20, huge_pages=True, what="a test")
    area[-1] = 7
    (tmp_path / "file").write_bytes(b"edge" * 300_000)
    with (tmp_path / "file").open("r+b") as file:
        map_over(area, file.fileno(), 1_200_000)
        assert area[:8].tobytes() == b"edgeedge"
        assert area[-1] == 7
        file.write(b"EDGE")
        file.flush()
        assert area[:8].tobytes() == b"EDGEedge"  # the file's own pages
    with pytest.raises(ValueError, match="read-only"):
        area[0] = 1


@pytest.mark.skipif(not CAN_MAP_OVER, reason="needs a POSIX system")
def test_file_that_cannot_be_mapped_leaves_the_reservation(tmp_path: Path) -> None:
    area = reserve(1 << 20, huge_pages=True, what="a test")
    area[0] = 7
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Permission denied"):
        map_over(area, file.fileno(), 1 << 20)  # not open for reading
    assert area[0] == 7
    area[0] = 8


def test_release_of_ordinary_memory_changes_nothing() -> None:
    array = np.arange(1 << 16)
    release_pages(array)
    np.testing.assert_array_equal(array, np.arange(1 << 16))


def test_memory_limit_is_the_least_that_applies(tmp_path: Path) -> None:
    machine = memory_limit(tmp_path)  # no cgroup files here
    assert machine is not None
    assert machine > 1 << 28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == machine
    (tmp_path / "memory.max").write_text("123456789\n")
    assert memory_limit(tmp_path) == 123456789


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_code_that_was_dropped_still_runs() -> None:
    """LLVM's, of which compiling has touched much."""
    import llvmlite.binding as llvm

    def compiled() -> str:
        module = llvm.parse_assembly("define i32 @f(i32 %x) {\n %y = mul i32 %x, 12\n ret i32 %y\n}")
        target = llvm.Target.from_default_triple().create_target_machine()
        return str(target.emit_assembly(module))

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    expected = compiled()
    before = resident_bytes()
    assert release_code("libllvmlite") > 10 << 20
    assert before - resident_bytes() > 4 << 20
    assert compiled() == expected
    assert release_code("no such library") == 0

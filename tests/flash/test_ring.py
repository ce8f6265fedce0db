"""The ring brings every unit in order, whatever its slots, and is right again after a break."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.flash.reader import Reader
from edgellm.flash.ring import Ring
from edgellm.flash.rows import RowTiles

SIZES = (5000, 100, 70000, 4096, 33333, 1, 8192)


@pytest.fixture
def content(tmp_path: Path) -> tuple[Path, np.ndarray]:
    data = np.random.default_rng(2).integers(0, 256, 1 << 20, np.uint8)
    path = tmp_path / "weights.bin"
    path.write_bytes(data.tobytes())
    return path, data


def units() -> list[tuple[int, int]]:
    """Odd places, not in the order of the file."""
    return [(700_000 - 97_001 * i, size) for i, size in enumerate(SIZES)]


def at(place: int, nbytes: int) -> bytes:
    return ctypes.string_at(place, nbytes)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 9])
def test_units_come_in_order_round_after_round(content, slots: int) -> None:
    path, data = content
    with Reader(path) as reader:
        ring = Ring(reader, units(), slots, max(SIZES) + 8192)
        for _ in range(3):
            for (offset, nbytes), place in zip(units(), ring.addresses, strict=True):
                ring.wait()
                assert at(place, nbytes) == data[offset : offset + nbytes].tobytes()
                ring.release()
        assert ring.stats.reads >= 3 * len(SIZES)
        ring.drain()


def test_several_units_can_be_held(content) -> None:
    path, data = content
    with Reader(path) as reader:
        ring = Ring(reader, units(), 4, max(SIZES) + 8192)
        for _ in range(4):
            ring.wait()
        for (offset, nbytes), place in list(zip(units(), ring.addresses, strict=True))[:4]:
            assert at(place, nbytes) == data[offset : offset + nbytes].tobytes()
        with pytest.raises(ValueError, match="every slot"):
            ring.wait()
        ring.drain()


def test_a_restart_begins_with_the_first_unit(content) -> None:
    path, data = content
    with Reader(path) as reader:
        ring = Ring(reader, units(), 3, max(SIZES) + 8192)
        ring.wait()
        ring.wait()
        ring.release()
        ring.restart()
        ring.wait()
        offset, nbytes = units()[0]
        assert at(ring.addresses[0], nbytes) == data[offset : offset + nbytes].tobytes()
        ring.drain()


def test_a_unit_must_fit_its_slot(content) -> None:
    with Reader(content[0]) as reader, pytest.raises(ValueError, match="unit 2 takes"):
        Ring(reader, units(), 3, 65536)


def test_a_file_that_ends_too_early_is_told(content) -> None:
    path, _ = content
    with Reader(path) as reader:
        ring = Ring(reader, units(), 3, max(SIZES) + 8192)
        with path.open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(EdgeError, match=r"weights\.bin"):
            ring.wait()
        ring.drain()


def test_rows_are_found_where_they_were_put(content) -> None:
    path, data = content
    stride, rows, offset = 1000, 16, 12_345
    rng = np.random.default_rng(3)
    with Reader(path) as reader:
        table = RowTiles(reader, offset, stride, rows, capacity=5)
        for _ in range(50):
            ids = rng.choice(rng.integers(0, 900, 5), 12)  # of at most five tiles
            for token, local in zip(ids, table.fetch(ids), strict=True):
                assert local % rows == token % rows
                start = offset + token // rows * stride
                place = table.address + int(local) // rows * stride
                assert at(place, stride) == data[start : start + stride].tobytes()
        before = table.bytes_read
        table.fetch(ids)
        assert table.bytes_read == before  # they are still there
        with pytest.raises(ValueError, match="6 tiles were asked for, 5 fit"):
            table.fetch(np.arange(6) * rows)

"""Embedding rows from flash: only the tiles that hold the rows of the tokens at hand are read."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from edgellm.flash.reader import Reader
from edgellm.kernels.layout import align
from edgellm.kernels.memory import address, reserve

AT_ONCE = 32  # tiles that are read together, for which there is room to land


class RowTiles:
    """Tiles of an embedding table, those used last, side by side in memory at `address`.

    offset, stride: of the table in the file; rows: of a tile; capacity: tiles that are kept, at least as many
    as one call can ask for.
    """

    def __init__(self, reader: Reader, offset: int, stride: int, rows: int, capacity: int):
        self._reader, self._offset, self._stride, self._rows = reader, offset, stride, rows
        self._capacity = capacity
        step = reader.alignment
        self._read_bytes = self._read_size(stride, step)
        self._tiles = reserve(capacity * stride + step, huge_pages=False, what="embedding rows")
        self._landing = reserve(
            min(capacity, AT_ONCE) * self._read_bytes + step, huge_pages=False, what="embedding rows"
        )
        self._held: OrderedDict[int, int] = OrderedDict()  # tile -> its place
        self.bytes_read = self.reads = 0

    @property
    def address(self) -> int:
        return address(self._tiles)

    @staticmethod
    def _read_size(stride: int, alignment: int) -> int:
        return align(stride + alignment, alignment) + alignment

    @staticmethod
    def memory_bytes(stride: int, capacity: int, alignment: int) -> int:
        """What `capacity` tiles take, and those that are on their way."""
        return capacity * stride + min(capacity, AT_ONCE) * RowTiles._read_size(stride, alignment)

    def fetch(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of the rows `ids` (int64) in the table of the tiles that are now in memory. Raises
        EdgeError where they cannot be read."""
        tiles, where = np.unique(ids // self._rows, return_inverse=True)
        if len(tiles) > self._capacity:
            raise ValueError(f"{len(tiles)} tiles were asked for, {self._capacity} fit")
        for tile in tiles:
            if int(tile) in self._held:
                self._held.move_to_end(int(tile))
        missing = [int(tile) for tile in tiles if int(tile) not in self._held]
        for first in range(0, len(missing), AT_ONCE):
            self._load(missing[first : first + AT_ONCE])
        places = np.array([self._held[int(tile)] for tile in tiles], np.int64)
        return places[where.reshape(-1)] * self._rows + ids % self._rows

    def _load(self, tiles: list[int]) -> None:
        step = self._reader.alignment
        starts = [self._offset + tile * self._stride for tile in tiles]
        offsets = [start // step * step for start in starts]
        lengths = [align(s + self._stride, step) - o for s, o in zip(starts, offsets, strict=True)]
        base = align(address(self._landing), step)
        landing = base - address(self._landing)
        places = [base + i * self._read_bytes for i in range(len(tiles))]
        self._reader.read(offsets, lengths, places)
        self.bytes_read += sum(lengths)
        self.reads += len(lengths)
        for i, (tile, start, offset) in enumerate(zip(tiles, starts, offsets, strict=True)):
            place = len(self._held) if len(self._held) < self._capacity else self._held.popitem(last=False)[1]
            at = landing + i * self._read_bytes + start - offset
            self._tiles[place * self._stride :][: self._stride] = self._landing[at:][: self._stride]
            self._held[tile] = place

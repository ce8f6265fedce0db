"""Where the keys and values of a sequence lie in memory.

A KV cache is a row of chunks of CHUNK positions. A chunk holds one block for every KV head of every slot,
side by side, so that memory fills up as positions do, and can be given in huge pages. A block is one
stream: its keys, then its values, of CHUNK positions of one head.

fp16   keys as tiles of 16 positions, float16 (CHUNK / 16, width, 16); values float16 (CHUNK, width).
int8   float16 scales of the keys, then of the values, (CHUNK,) each; then codes, x = scale * (code - 128).
       Keys as tiles of 16 positions: units of 64 bytes, unit u holds dimensions 4u..4u+3 of every
       position, byte 4 * position + i. Values by 4 positions: units of 64 bytes, of 16 dimensions each,
       byte 4 * dimension + i for position i.

The width is the head dimension padded to 16; padded dimensions are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.kernels.layout import align

CHUNK = 64  # positions
KINDS = ("fp16", "int8")
TILE = 16  # positions of a tile of keys
ZERO_CODE = 128


@dataclass(frozen=True)
class KvBlock:
    """One block, in bytes."""

    kind: str
    width: int

    @classmethod
    def of(cls, kind: str, head_dim: int) -> KvBlock:
        return cls(kind, align(head_dim, 16))

    @property
    def keys(self) -> int:
        """Offset of the keys: behind the scales."""
        return 4 * CHUNK if self.kind == "int8" else 0

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return 1 if self.kind == "int8" else 2

    @property
    def values(self) -> int:
        """Offset of the values."""
        return self.keys + CHUNK * self.width * self.item

    @property
    def nbytes(self) -> int:
        return self.values + CHUNK * self.width * self.item

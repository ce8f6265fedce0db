"""How attention cuts up its work, and the memory that it works in."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.kernels.kv_layout import CHUNK
from edgellm.kernels.layout import align

STATS = 192  # bytes of a row's online softmax: the largest score, the sums, the last scaling, 16 float32 each
LARGEST, SUMS, SCALING = 0, 64, 128  # where they are
MASKED = -3.0e38  # the score of a position that a row does not see
ROW_BLOCK = 6  # rows (a query of one head each) that are computed at once in prefill
PREFILL_ROWS = 48  # rows that share each unpacking of keys and values in prefill
SPANS = 32  # parts, at most, that a long sequence is cut into for the threads of decode
SPAN_CHUNKS = 2  # chunks of a part, at least
COUNTER = 64  # bytes from one counter to the next
PLANES = 2  # int8 planes of queries and of probabilities, with a KV cache in int8


@dataclass(frozen=True)
class Scratch:
    """A thread's own memory for query heads in groups of `group` that share a KV head, in bytes.

    Sections for every row: its online softmax at 0, CHUNK scores, the query and its result of `width`
    float32, int8 planes of the query and of CHUNK probabilities with 128 bytes behind them. Then CHUNK
    keys, then CHUNK values, as float32.
    """

    group: int
    width: int

    @property
    def rows(self) -> int:
        return max(PREFILL_ROWS, align(self.group, ROW_BLOCK))

    @property
    def scores(self) -> int:
        return self.rows * STATS

    @property
    def queries(self) -> int:
        return self.scores + self.rows * 4 * CHUNK

    @property
    def results(self) -> int:
        return self.queries + self.rows * 4 * self.width

    @property
    def query_planes(self) -> int:
        return self.results + self.rows * 4 * self.width

    @property
    def probabilities(self) -> int:
        return self.query_planes + self.rows * (PLANES * self.width + 128)

    @property
    def keys(self) -> int:
        return self.probabilities + self.rows * (PLANES * CHUNK + 128)

    @property
    def values(self) -> int:
        return self.keys + 4 * CHUNK * self.width

    @property
    def nbytes(self) -> int:
        return align(self.values + 4 * CHUNK * self.width)


def partial_bytes(group: int, width: int) -> int:
    """Results of the parts of a sequence, for one KV head: for every head of the group the largest scores,
    then the sums, of SPANS parts, float32; then `width` float32 for every part and head."""
    return group * SPANS * 4 * (2 + width)

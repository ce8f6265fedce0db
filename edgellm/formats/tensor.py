"""A named tensor of a checkpoint: its raw bytes, mapped from the file, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Tensor:
    """`data` is a read-only uint8 view of the mapped file, never a copy.

    shape is in NumPy order: a linear's weight is (out_features, in_features), so the blocks of a
    quantised type run along the last axis. data has shape (*shape[:-1], bytes per row).
    """

    name: str
    type: str  # ggml name of the tensor type: "F32", "BF16", "Q4_1", "Q6_K", ...
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def dequantize(self, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """float32 values of the given rows (all by default), shape (rows, *shape[1:])."""
        from edgellm.formats.types import dequantize  # late: gguf is slow to import

        data = self.data if rows is None else self.data[rows]
        return dequantize(data, self.type)

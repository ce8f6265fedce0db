"""Regenerate dequantized.npz: blocks of every quantised type and their values by llama.cpp's C code.

    python tests/formats/data/make_dequantized.py PATH/libggml-base.so

For each type, `TYPE` holds uint8 (rows, bytes per block) and `TYPE_values` float32 (rows, elements): half
of the rows quantised from normally distributed numbers, half of random bytes (finite values only).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np

from edgellm.formats.types import TENSOR_TYPES

ROWS = 4  # of each kind


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def dequantize(library: ctypes.CDLL, name: str, block: np.ndarray, elements: int) -> np.ndarray:
    base, _, rest = name.partition("_")
    values = np.empty(elements, np.float32)
    function = getattr(library, f"dequantize_row_{base.lower()}_{rest if rest == 'K' else rest.lower()}")
    function(pointer(block), pointer(values), ctypes.c_int64(elements))
    return values


def main() -> None:
    from gguf.constants import GGMLQuantizationType

    library = ctypes.CDLL(sys.argv[1])
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rng = np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {}
    for name, kind in TENSOR_TYPES.items():
        if kind.block == 1:
            continue
        numbers = rng.normal(size=(ROWS, kind.block)).astype(np.float32)
        blocks = np.zeros((ROWS, kind.nbytes), np.uint8)
        written = library.ggml_quantize_chunk(
            ctypes.c_int(GGMLQuantizationType[name]),
            pointer(numbers),
            pointer(blocks),
            ctypes.c_int64(0),
            ctypes.c_int64(ROWS),
            ctypes.c_int64(kind.block),
            None,
        )
        assert written == blocks.nbytes
        rows = list(blocks)
        while len(rows) < 2 * ROWS:
            block = rng.integers(0, 256, kind.nbytes, dtype=np.uint8)
            if np.isfinite(dequantize(library, name, block, kind.block)).all():
                rows.append(block)
        arrays[name] = np.stack(rows)
        arrays[f"{name}_values"] = np.stack([dequantize(library, name, row, kind.block) for row in rows])
    np.savez_compressed(Path(__file__).with_name("dequantized.npz"), **arrays)


if __name__ == "__main__":
    main()

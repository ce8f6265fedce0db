"""The tensors of one safetensors file, mapped.

The safetensors library checks the header (types, shapes, that the parts fill the file without gaps);
it hands out no offsets and NumPy has no bfloat16, so the views are made here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.tensor import Tensor
from edgellm.formats.types import TENSOR_TYPES

_LONGEST_NAME = 1024  # characters; names appear in sentences
# Names of the types that are ggml's too, and bytes of those that are not.
_FOREIGN_BYTES = {"BOOL": 1, "U8": 1, "U16": 2, "U32": 4, "I64": 8, "U64": 8}


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """Name in the file -> Tensor, whose type is the file's own name for it ("BF16", "U8", ...).

    Raises EdgeError, naming the file, if it is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        size = path.stat().st_size
        if size < 8:
            raise EdgeError(f"{path}: the file is too short to be a safetensors file; download it again.")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise EdgeError(
                    f"{path}: the file claims a header of {length} bytes but has {size}: it is truncated "
                    "or not a safetensors file, download it again."
                )
            header = file.read(length)
        with safe_open(str(path), framework="np"):
            pass
        entries: dict[str, Any] = json.loads(header, object_pairs_hook=_unique)
        data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # may quote the file
        raise EdgeError(f"{path}: the safetensors header is damaged ({reason}); download it again.") from None
    except OSError as error:
        raise EdgeError(f"{path}: the file cannot be read ({error.strerror or error}).") from None
    tensors = {}
    for name, entry in entries.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise EdgeError(f"{path}: the file has the name {name[:40]!r}, which is not that of a tensor.")
        if name != "__metadata__":
            tensors[name] = _tensor(path, name, entry, data[8 + length :])
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], data: np.ndarray) -> Tensor:
    kind, shape = entry["dtype"], tuple(entry["shape"]) or (1,)
    nbytes = TENSOR_TYPES[kind].nbytes if kind in TENSOR_TYPES else _FOREIGN_BYTES.get(kind)
    if nbytes is None:
        raise EdgeError(f"{path}: the tensor {name} has the type {kind}, which is not supported.")
    begin, end = entry["data_offsets"]
    return Tensor(name, kind, shape, data[begin:end].reshape(*shape[:-1], shape[-1] * nbytes))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table

"""Write a GGUF file piece by piece: it appears under its name when it is whole, or not at all.

The gguf package's writer wants each tensor in memory and turns metadata into Python values and back; here a
tensor is an iterator over its rows, and a value copied from another file stays the bytes that it was.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.types import row_bytes
from edgellm.hub.progress import human
from edgellm.hub.store import SPARE, fsync_folder

ALIGNMENT = 32  # of a tensor's data; GGUF's default
Progress = Callable[[int, int], None]  # bytes of tensors written, of how many
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_VERSION = 3


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: `pieces()` yields its rows' bytes in order, uint8, some rows at a time."""

    name: str
    type: str
    shape: tuple[int, ...]  # NumPy order
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        rows = 1
        for extent in self.shape[:-1]:
            rows *= extent
        return rows * row_bytes(self.type, self.shape[-1])


def encode_value(value: Any) -> bytes:
    """Type and payload of a metadata value: bool, int (uint32), float (float32), str, a list of str, or an
    array of int32 or float32. Bytes are taken as they are: an encoded value."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray) and value.dtype in (np.int32, np.float32):
        kind = _INT32 if value.dtype == np.int32 else _FLOAT32
        little = value.astype(value.dtype.newbyteorder("<"))
        return struct.pack("<IIQ", _ARRAY, kind, value.size) + little.tobytes()
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    raise TypeError(f"no GGUF value: {type(value).__name__}")


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    *,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the file and return its size in bytes; what was at `path` before is replaced at the end.

    keys: as encode_value takes them. check: called with the finished file while it still has another name;
    what it raises means that the file must not appear. Raises EdgeError where the disk has no room or the
    file cannot be written; nothing of it is left then, and none after an interruption.
    """
    _check_place(path)
    header, offsets, size = _layout(keys, tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    part = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    try:
        free = shutil.disk_usage(path.parent).free
        if size + SPARE > free:
            raise EdgeError(
                f"{path}: the file needs {human(size)}, but its disk has only {human(free)} free; free some "
                "space or write it elsewhere."
            )
        try:
            with part.open("xb") as file:
                file.write(header)
                done = 0
                for tensor, offset in zip(tensors, offsets, strict=True):
                    _pad(file, len(header) + offset)
                    for piece in tensor.pieces():
                        done += file.write(np.ascontiguousarray(piece).data)
                        if progress:
                            progress(done, total)
                    if file.tell() != len(header) + offset + tensor.nbytes:
                        raise ValueError(f"{tensor.name} wrote another number of bytes than it announced")
                _pad(file, size)
                file.flush()
                os.fsync(file.fileno())
            if check:
                check(part)
            os.replace(part, path)
            fsync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise EdgeError(f"{path}: the file cannot be written ({error.strerror or error}).") from None
    return size


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise EdgeError(f"{path}: this is not a file, so no model can be written there; name a .gguf file.")
    if not path.parent.is_dir():
        raise EdgeError(f"{path}: the folder {path.parent} does not exist; make it first.")


def _layout(keys: Mapping[str, Any], tensors: Sequence[NewTensor]) -> tuple[bytes, list[int], int]:
    """The header, padded; where each tensor starts behind it; the size of the file."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(keys))]
    parts += [_string(key) + encode_value(value) for key, value in keys.items()]
    offsets, end = [], 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _type_number(tensor.type), end))
        offsets.append(end)
        end += _aligned(tensor.nbytes)
    header = b"".join(parts)
    header = header.ljust(_aligned(len(header)), b"\0")
    return header, offsets, len(header) + end


def _type_number(name: str) -> int:
    from gguf import GGMLQuantizationType  # late: gguf is slow to import

    return int(GGMLQuantizationType[name])


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: IO[bytes], position: int) -> None:
    file.write(bytes(position - file.tell()))

"""The header of one GGUF file: the gguf package's reader, made safe for damaged files and fast.

gguf.GGUFReader trusts every number of the file and makes one NumPy slice per array element, seconds for
a vocabulary. CheckedReader keeps its walk over the file but checks each number before it is used,
steps over arrays in one go and builds the tensors itself. The methods that start with an underscore
override helpers of the package; tests/formats/test_gguf.py compares the result with the stock reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField

from edgellm.errors import EdgeError
from edgellm.formats.bitnet_cpp import OTHERS, BitnetOptions, Place, bitnet_bytes, bitnet_kinds
from edgellm.formats.tensor import Tensor
from edgellm.formats.types import TENSOR_TYPES, row_bytes

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_PREAMBLE = 24  # bytes: magic, version, tensor count, key count
_MOST_ENTRIES = 100_000  # tensors or keys; the largest models have some thousands
_LONGEST_NAME = 65_535  # bytes, from the GGUF specification
_LONGEST_SHOWN = 1024  # characters; longer ones are not written by any program
_LARGEST_ALIGNMENT = 1 << 24
_MOST_DIMENSIONS = 4
_SCALARS: dict[int, np.dtype[Any]] = {
    int(kind): np.dtype(kind_type).newbyteorder("<")
    for kind, kind_type in GGUFReader.gguf_scalar_to_np.items()
}
_STRING, _ARRAY, _BOOL = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY), int(GGUFValueType.BOOL)
_length = struct.Struct("<Q").unpack_from


class CheckedReader(GGUFReader):
    """Fields and tensors of the GGUF file `path`. Raises EdgeError on anything that is not in order.

    tensors_by_name: name -> Tensor over the mapped file, in file order. Those of bitnet.cpp are still as
    bitnet_cpp.unpack_bitnet takes them.
    """

    def __init__(self, path: Path, bitnet: BitnetOptions):
        self.path = path
        self._bitnet = bitnet
        try:
            if path.stat().st_size < _PREAMBLE:
                self._fail("is too short to be a GGUF file; download it again")
            self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
            self._view = self._bytes.data
            self._check_preamble()
            super().__init__(path)
        except UnicodeDecodeError:
            raise EdgeError(f"{path}: a name is not valid UTF-8; the file is damaged.") from None
        except OSError as error:
            raise EdgeError(f"{path}: the file cannot be read ({error.strerror}).") from None
        del self.data  # the base class maps the file once more

    def _fail(self, what: str) -> NoReturn:
        raise EdgeError(f"{self.path}: the file {what}.")

    def _check_preamble(self) -> None:
        magic = bytes(self._view[:4])
        if magic != _MAGIC:
            if magic[::-1] == _MAGIC:
                self._fail("is a big-endian GGUF file, which is not supported; convert it to little-endian")
            self._fail("is not a GGUF file (wrong magic); give a .gguf file or a Hugging Face folder")
        version, tensors, keys = struct.unpack_from("<IQQ", self._view, 4)
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                self._fail("is a big-endian GGUF file, which is not supported; convert it to little-endian")
            self._fail(f"has GGUF version {version}, but edgellm reads 2 and 3; convert the model again")
        for count, what in ((tensors, "tensors"), (keys, "metadata keys")):
            if count > _MOST_ENTRIES:
                self._fail(f"claims {count} {what}, more than the {_MOST_ENTRIES} allowed; it is damaged")

    # Helpers of GGUFReader

    def _get(
        self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        kind, count = np.dtype(dtype), int(count)
        if count > (len(self._view) - offset) // kind.itemsize:
            self._fail("ends within its header: it is truncated or damaged, download it again")
        if count == 0:
            return np.empty(0, kind)
        return np.frombuffer(self._view, kind.newbyteorder("<"), count, offset)

    def _get_str(self, offset: int) -> Any:
        length = self._get(offset, np.uint64)
        if length[0] > _LONGEST_NAME:
            self._fail(f"has a name of {length[0]} bytes at byte {offset}; it is damaged")
        return length, self._get(offset + 8, np.uint8, length[0])

    def _check_name(self, name: str) -> None:
        """Names appear in sentences: no line breaks, no pages of text."""
        if not name.isprintable() or len(name) > _LONGEST_SHOWN:
            self._fail(f"has the name {name[:40]!r}, which is not that of a tensor or key; it is damaged")

    def _push_field(self, field: ReaderField, skip_sum: bool = False) -> int:
        self._check_name(field.name)
        if field.name in self.fields:
            self._fail(f"has the metadata key {field.name} twice; it is damaged")
        return super()._push_field(field, skip_sum)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """As in the base class, but the payload of an array is a single part: values or raw strings."""
        kind = int(raw_type)
        if kind == _STRING:
            length = self._get(orig_offs, np.uint64)
            text = self._get(orig_offs + 8, np.uint8, length[0])
            return 8 + text.nbytes, [length, text], [1], [GGUFValueType.STRING]
        if kind in _SCALARS:
            value = self._get(orig_offs, _SCALARS[kind])
            return value.nbytes, [value], [0], [GGUFValueType(kind)]
        if kind != _ARRAY:
            self._fail(f"has a metadata value of unknown type {kind} at byte {orig_offs}; it is damaged")
        item, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        start, item_kind = orig_offs + 12, int(item[0])
        if item_kind == _STRING:
            payload = self._bytes[start : self._skip_strings(start, int(count[0]))]
        elif item_kind in _SCALARS:
            payload = self._get(start, _SCALARS[item_kind], count[0])
        else:
            self._fail(
                f"has a metadata array of type {item_kind} at byte {orig_offs}, which is not supported"
            )
        types = [GGUFValueType.ARRAY, GGUFValueType(item_kind)]
        return 12 + payload.nbytes, [item, count, payload], [2], types

    def _skip_strings(self, start: int, count: int) -> int:
        """Offset after `count` strings; the cheapest possible check that they all lie in the file."""
        view, position, size = self._view, start, len(self._view)
        if count > (size - start) // 8:
            self._fail("ends within its header: it is truncated or damaged, download it again")
        try:
            for _ in range(count):
                position += 8 + _length(view, position)[0]
        except (struct.error, OverflowError):
            position = size + 1
        if position > size:
            self._fail("ends within its header: it is truncated or damaged, download it again")
        return position

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        length, _ = self._get_str(orig_offs)
        dimensions = self._get(orig_offs + 8 + int(length[0]), np.uint32)[0]
        if dimensions > _MOST_DIMENSIONS:
            self._fail(
                f"has a tensor of {dimensions} dimensions, more than {_MOST_DIMENSIONS}; it is damaged"
            )
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        end, fields = super()._build_tensor_info(offs, count)
        alignment = (
            field_value(self.fields["general.alignment"]) if "general.alignment" in self.fields else 32
        )
        if (
            not isinstance(alignment, int)
            or not 1 <= alignment <= _LARGEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            self._fail(f"has the alignment {alignment}, which is not a power of two; it is damaged")
        self._align = alignment
        self._header_end = end
        return end, fields

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        """Tensors must follow each other in file order, padded to the alignment, as llama.cpp demands;
        so a shape or type that disagrees with the data is found by the offset of the next tensor.
        """
        self.tensors = []
        self.tensors_by_name: dict[str, Tensor] = {}
        begin = -(-self._header_end // self._align) * self._align
        expected = 0
        infos = self._tensor_infos(fields, len(self._view) - begin)
        foreign = bitnet_kinds(self.path, [place for place, _ in infos], self._align, self._bitnet)
        for (name, shape, number, _, _), position in infos:
            kind = foreign.get(number)
            if kind is None:
                kind = self._tensor_type(name, number)
                rows_shape = self._rows_shape(name, kind, shape)
            else:
                rows_shape = (bitnet_bytes(self.path, name, kind, shape),)
            if position % self._align:
                self._fail(f"has the tensor {name} at the misaligned offset {position}; it is damaged")
            size = 1
            for extent in rows_shape:
                size *= extent  # Python integers: np.prod would wrap around
            if position != expected:
                self._fail(
                    f"has the tensor {name} at offset {position}, but the tensors before it fill {expected} "
                    "bytes: a shape disagrees with the data"
                )
            first = begin + position
            if first + size > len(self._view):
                self._fail(
                    f"has {len(self._view)} bytes, but the tensor {name} ends at byte {first + size}: it is "
                    "truncated or the shape is wrong, download it again"
                )
            data = self._bytes[first : first + size].reshape(rows_shape)
            self.tensors_by_name[name] = Tensor(name, kind, shape, data)
            expected = position + -(-size // self._align) * self._align

    def _tensor_infos(self, fields: list[ReaderField], data_bytes: int) -> list[tuple[Place, int]]:
        """What the header says about each tensor, and its offset among the `data_bytes` behind the header."""
        offsets = [int(field.parts[5][0]) for field in fields]
        infos: dict[str, tuple[Place, int]] = {}
        for i, (field, offset) in enumerate(zip(fields, offsets, strict=True)):
            _, _, _, dims, raw_type, _ = field.parts
            name, shape = field.name, tuple(reversed(dims.tolist())) or (1,)
            self._check_name(name)
            if name in infos:
                self._fail(f"has the tensor {name} twice; it is damaged")
            if min(shape) < 1:
                self._fail(f"has the tensor {name} with the shape {shape}; it is damaged")
            last = i + 1 == len(fields)
            room = (data_bytes if last else offsets[i + 1]) - offset
            infos[name] = Place(name, shape, int(raw_type[0]), room, last), offset
        return list(infos.values())

    def _rows_shape(self, name: str, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor's bytes: (*shape[:-1], bytes per row)."""
        if shape[-1] % TENSOR_TYPES[kind].block:
            self._fail(
                f"has the tensor {name} with rows of {shape[-1]}, not a multiple of the {kind} block of "
                f"{TENSOR_TYPES[kind].block}; it is damaged"
            )
        return (*shape[:-1], row_bytes(kind, shape[-1]))

    def _tensor_type(self, name: str, number: int) -> str:
        known = {number: name for number, (name, _, _) in OTHERS.items()}
        known |= {int(kind): kind.name for kind in GGMLQuantizationType}
        kind = known.get(number, f"number {number}")
        if kind not in TENSOR_TYPES:
            self._fail(
                f"has the tensor {name} of type {kind}, which is not supported; use a model with one of "
                f"{', '.join(TENSOR_TYPES)}"
            )
        return kind


def field_value(field: ReaderField) -> Any:
    """The value of a field as bool, int, float or str, an array of numbers or the raw bytes of strings."""
    kind, value = field.types[0], field.parts[field.data[0]]
    if kind == GGUFValueType.ARRAY:
        return value
    if kind == GGUFValueType.STRING:
        return str(value.tobytes(), "utf-8")
    return value[0].item()


class Metadata(Mapping[str, Any]):
    """Key-value pairs of a GGUF file: bool, int, float, str, NumPy arrays and list[str].

    Lists of strings are decoded when they are first asked for: a vocabulary takes a while.
    """

    def __init__(self, path: Path, fields: Mapping[str, ReaderField]):
        self._path = path
        self._fields = {name: field for name, field in fields.items() if not name.startswith("GGUF.")}
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            field = self._fields[key]
            try:
                value = field_value(field)
                if field.types == [GGUFValueType.ARRAY, GGUFValueType.STRING]:
                    value = _strings(value.tobytes(), int(field.parts[-2][0]))
            except UnicodeDecodeError:
                raise EdgeError(
                    f"{self._path}: the value of {key} is not valid UTF-8; the file is damaged."
                ) from None
            self._values[key] = value
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def array_length(self, key: str) -> int | None:
        """Elements of the array `key`, without decoding it; None if there is no such array."""
        field = self._fields.get(key)
        if field is None or field.types[0] != GGUFValueType.ARRAY:
            return None
        return int(field.parts[-2][0])


def _strings(data: bytes, count: int) -> list[str]:
    """Decode `count` strings, each a uint64 length and its bytes; lengths are checked before."""
    values, position = [], 0
    for _ in range(count):
        start = position + 8
        position = start + _length(data, position)[0]
        values.append(str(data[start:position], "utf-8"))
    return values

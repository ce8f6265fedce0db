"""Open a GGUF file, whole or split into parts, as a Checkpoint. Nothing is copied: tensors are mapped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import EdgeError
from edgellm.formats.bitnet_cpp import BitnetOptions, unpack_bitnet
from edgellm.formats.checkpoint import Checkpoint, FileId, file_ids
from edgellm.formats.config import ModelConfig
from edgellm.formats.gguf_config import gguf_config
from edgellm.formats.hf_config import hf_config
from edgellm.formats.keys import Keys
from edgellm.formats.shapes import check_shapes
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from edgellm.formats.gguf_reader import Metadata

# In the place of the keys of its architecture: the config.json of a model that GGUF has no keys for.
CONFIG_KEY = "edgellm.config"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_gguf(
    path: str | Path, bitnet: BitnetOptions | None = None, *, beside: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Open the GGUF file `path`; of a split model, any part ("name-00001-of-00003.gguf").

    bitnet: what a file of bitnet.cpp leaves open; by default as the environment says. beside: tensors of the
    model that lie elsewhere.

    Raises EdgeError, one sentence naming the file, for whatever is wrong with it: not GGUF, truncated,
    damaged, of an unsupported type or architecture, or with shapes that disagree with the metadata.
    """
    path = Path(path)
    if path.is_dir():
        raise EdgeError(f"{path}: this is a folder, not a GGUF file.")
    match = _PART.fullmatch(path.name)
    first = path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf") if match else path
    files = file_ids([first])
    bitnet = bitnet or BitnetOptions.from_environment()
    metadata, tensors = _open_part(first, bitnet)
    parts = Keys(first, metadata).integer("split.count", 1, least=0)
    if parts > 1:
        files += _add_parts(first, parts, metadata, tensors, bitnet)
    tensors, assumptions, read = unpack_bitnet(first, tensors, bitnet)
    files += read
    for name, tensor in (beside or {}).items():
        if name in tensors:
            raise EdgeError(f"{first}: the tensor {name} is here, and beside this file once more.")
        tensors[name] = tensor
    config = _config(first, metadata, tensors)
    tokens = metadata.array_length("tokenizer.ggml.tokens")
    if tokens is not None and tokens != config.vocab_size:
        raise EdgeError(
            f"{first}: the tensor token_embd.weight has {config.vocab_size} rows, which disagrees with the "
            f"{tokens} tokens of the vocabulary."
        )
    check_shapes(first, config, tensors)
    return Checkpoint(first, "gguf", config, tensors, metadata, files, assumptions)


def _config(path: Path, metadata: Metadata, tensors: Mapping[str, Tensor]) -> ModelConfig:
    if CONFIG_KEY not in metadata:
        return gguf_config(path, metadata, tensors)
    try:
        values = json.loads(Keys(path, metadata).text(CONFIG_KEY))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise EdgeError(f"{path}: {CONFIG_KEY} is not a JSON dictionary; the file is damaged.")
    config = hf_config(path, values)
    if config.n_layers > len(tensors):
        raise EdgeError(f"{path}: {config.n_layers} layers cannot be made of {len(tensors)} tensors.")
    return config


def _open_part(path: Path, bitnet: BitnetOptions) -> tuple[Metadata, dict[str, Tensor]]:
    from edgellm.formats.gguf_reader import CheckedReader, Metadata  # late: gguf is slow to import

    if not path.is_file():
        raise EdgeError(f"{path}: no such file.")
    reader = CheckedReader(path, bitnet)
    return Metadata(path, reader.fields), reader.tensors_by_name


def _add_parts(
    first: Path, parts: int, metadata: Metadata, tensors: dict[str, Tensor], bitnet: BitnetOptions
) -> tuple[FileId, ...]:
    """Add the tensors of parts 2 to `parts` of the model whose first part is `first`; returns their files."""
    files: tuple[FileId, ...] = ()
    match = _PART.fullmatch(first.name)
    if match is None or int(match["count"]) != parts:
        raise EdgeError(
            f"{first}: this is one of {parts} parts of a model, but its name does not end in "
            f"-00001-of-{parts:05d}.gguf; give the parts their original names."
        )
    for number in range(2, parts + 1):
        path = first.with_name(f"{match['stem']}-{number:05d}-of-{parts:05d}.gguf")
        if not path.is_file():
            raise EdgeError(f"{path}: part {number} of {parts} of the model is missing; download it too.")
        files += file_ids([path])
        part_metadata, part_tensors = _open_part(path, bitnet)
        keys = Keys(path, part_metadata)
        if keys.integer("split.no", least=0) != number - 1 or keys.integer("split.count") != parts:
            raise EdgeError(f"{path}: the file is not part {number} of {parts}; download it again.")
        for name, tensor in part_tensors.items():
            if name in tensors:
                raise EdgeError(f"{path}: the tensor {name} is also in an earlier part of the model.")
            tensors[name] = tensor
    total = Keys(first, metadata).integer("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise EdgeError(
            f"{first}: the parts hold {len(tensors)} tensors instead of {total}; download them again."
        )
    return files

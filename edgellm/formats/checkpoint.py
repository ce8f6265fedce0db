"""Checkpoint: a model file, opened. Configuration and named tensors, mapped and never copied."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgellm.formats.config import ModelConfig
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from edgellm.formats.edge import Bundle


class FileId(NamedTuple):
    """Which file this was: another content has another size or time of change."""

    path: str  # absolute, symbolic links resolved
    size: int
    mtime_ns: int


def file_ids(paths: Iterable[Path]) -> tuple[FileId, ...]:
    """Of the files as they are now; take it before reading them. Empty if one cannot be looked at."""
    found = []
    for path in paths:
        real = os.path.realpath(path)
        try:
            status = os.stat(real)
        except OSError:
            return ()
        found.append(FileId(real, status.st_size, status.st_mtime_ns))
    return tuple(found)


@dataclass
class Checkpoint:
    """An opened model.

    tensors: by GGUF name ("token_embd.weight", "blk.0.attn_q.weight", ...) whatever the file format.
    metadata: the file's own key-value pairs (GGUF keys, also for a bundle; for a Hugging Face folder,
    config.json and generation_config.json under "config" and "generation_config").
    files: what the tensors and the configuration were read from; empty for a checkpoint made in memory.
    assumptions: how the files were read where they leave it open, one phrase each.
    bundle: what a bundle has besides.
    """

    path: Path
    format: Literal["gguf", "hf", "edge"]
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileId, ...] = ()
    assumptions: tuple[str, ...] = ()
    bundle: Bundle | None = None

    @property
    def parameters(self) -> int:
        return sum(t.elements for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a .gguf file, a Hugging Face folder or a bundle. Raises EdgeError, one sentence, on bad input."""
    from edgellm.errors import EdgeError

    path = Path(path)
    if not path.exists():
        raise EdgeError(f"{path}: no such model file or folder.")
    if path.is_dir():
        from edgellm.formats.edge_manifest import is_bundle

        if is_bundle(path):
            from edgellm.formats.edge import open_edge

            return open_edge(path)
        from edgellm.formats.hf import open_hf

        return open_hf(path)
    from edgellm.formats.gguf import open_gguf

    return open_gguf(path)

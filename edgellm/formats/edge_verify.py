"""Is a bundle what was packed? Every file against the manifest, and every slot against its checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.edge_manifest import FFN, NEURONS, Manifest, Part, read_manifest, size_problem
from edgellm.formats.edge_work import section_sums
from edgellm.formats.gguf_writer import Progress
from edgellm.formats.safetensors import map_safetensors
from edgellm.formats.slots import SlotLayout
from edgellm.hub.store import CHUNK

MOST_NAMED = 20  # neurons of a damaged ffn.bin that are named one by one
_AT_ONCE = 8 << 20  # bytes of slots that are read at a time


def verify(path: Path, progress: Progress | None = None) -> list[str]:
    """What is wrong with the bundle `path`, one sentence each; nothing if it is whole.

    progress: told of bytes read. Raises EdgeError, one sentence, where there is no manifest that could say
    what the bundle should be, and for a file that cannot be read.
    """
    manifest = read_manifest(path)
    total, done = sum(part.bytes for part in manifest.parts.values()), 0
    problems: list[str] = []
    for name, part in manifest.parts.items():
        wrong = size_problem(path / name, part)
        if wrong:
            problems.append(f"{name}: {wrong}")
        else:
            try:
                problems += _content_problems(path / name, part, manifest)
            except OSError as error:
                raise EdgeError(f"{path / name}: cannot be read ({error.strerror or error}).") from None
        done += part.bytes
        if progress:
            progress(done, total)
    if not problems:
        problems = _model_problems(path)
    return problems


def _model_problems(path: Path) -> list[str]:
    """What a bundle of the right bytes cannot have, unless its manifest was changed."""
    from edgellm.formats.edge import open_edge

    try:
        open_edge(path)
    except EdgeError as error:
        return [str(error).rstrip(".")]
    return []


def _content_problems(path: Path, part: Part, manifest: Manifest) -> list[str]:
    layout = manifest.layout if path.name == FFN else None
    digest, problems = hashlib.sha256(), []
    if layout is not None and layout.file_bytes == part.bytes:
        wanted = _wanted_sums(path.with_name(NEURONS), layout)
        for data, layer, slot in _pieces(path, layout):
            digest.update(data)
            if wanted is not None and layer is not None:
                slots = np.frombuffer(data, np.uint8).reshape(-1, layout.stride)
                differ = (section_sums(layout, slots) != wanted[layer, slot : slot + len(slots)]).any(axis=1)
                problems += [_named(layout, layer, slot + int(i)) for i in np.flatnonzero(differ)]
    else:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
    if len(problems) > MOST_NAMED:
        more = len(problems) - MOST_NAMED
        problems = [*problems[:MOST_NAMED], f"{more} more slots differ from their checksums"]
    if digest.hexdigest() != part.sha256:
        problems.insert(0, "the content has another sha256 than the manifest says")
    return [f"{path.name}: {problem}" for problem in problems]


def _wanted_sums(path: Path, layout: SlotLayout) -> np.ndarray | None:
    """uint64 (layers, slots, 2); None where they cannot be read, which is told of their own file."""
    try:
        tensor = map_safetensors(path)["sums"]
    except (EdgeError, KeyError):
        return None
    shape = (layout.layers, layout.slots, 2)
    return tensor.data.view("<u8") if (tensor.type, tensor.shape) == ("U64", shape) else None


def _pieces(path: Path, layout: SlotLayout) -> Iterator[tuple[bytes, int | None, int]]:
    """All of ffn.bin in order: bytes, the layer or None for what lies between layers, the first slot."""
    step = max(1, _AT_ONCE // layout.stride)
    with path.open("rb") as file:
        for layer in range(layout.layers):
            yield file.read(layout.layer_offset(layer) - file.tell()), None, 0
            for slot in range(0, layout.slots, step):
                count = min(step, layout.slots - slot)
                yield file.read(count * layout.stride), layer, slot


def _named(layout: SlotLayout, layer: int, slot: int) -> str:
    first = slot * layout.per_slot
    last = min(first + layout.per_slot, layout.neurons) - 1
    if first == last:
        return f"layer {layer}, neuron {first} differs from its checksum"
    return f"layer {layer}, neurons {first} to {last} differ from their checksum"

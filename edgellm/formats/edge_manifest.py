"""The manifest of a bundle: what it says, and that all of it is checked before it is believed.

edge          1, the version of this format
source        "name", "format" and "files" (their "name" and "bytes") of the model that was packed
architecture, activation
mode          one of MODES
slots         the numbers of SlotLayout, which are in the superblock of ffn.bin too; null for "stream"
thresholds    of "sparse-threshold": below which magnitude the activation of a layer counts as 0
calibration   what the order of the neurons was found from, as whoever found it describes it; or null
loss          role -> what packing changed: "relative_rms" of all layers together, "lossless",
              "worst_layer" and its "worst_relative_rms"
padding_share of ffn.bin
parts         file name -> "bytes" and "sha256"
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgellm.errors import EdgeError
from edgellm.formats.keys import Keys
from edgellm.formats.slots import CODECS, MOST_IN_A_SLOT, SUPERBLOCK, UNIT, SlotLayout

VERSION = 1
MANIFEST, RESIDENT, FFN, NEURONS = "manifest.json", "resident.gguf", "ffn.bin", "neurons.safetensors"
PREDICTOR = "predictor.safetensors"  # there if somebody trained one
MODES = ("sparse-exact", "sparse-predicted", "sparse-threshold", "stream")
MAGIC = b"EDGEFFN1"
LEAST_ALIGNMENT, MOST_ALIGNMENT = 512, 1 << 20
_ROLES = ({"down"}, {"up", "down"}, {"up", "down", "gate"})
_MOST_LAYERS = 10_000
_LARGEST = 16 << 20  # bytes of a manifest; far more than any needs
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """A file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """values: the whole of it. layout: where the neurons lie; None for mode "stream"."""

    path: Path
    values: Mapping[str, Any]
    mode: str
    layout: SlotLayout | None
    thresholds: tuple[float, ...] | None
    parts: Mapping[str, Part]


def slots_table(layout: SlotLayout) -> dict[str, Any]:
    """The layout as the manifest and the superblock have it."""
    return asdict(layout)


def superblock(layout: SlotLayout) -> bytes:
    """The first SUPERBLOCK bytes of ffn.bin."""
    return (MAGIC + json.dumps(slots_table(layout)).encode()).ljust(SUPERBLOCK, b"\0")


def is_bundle(path: Path) -> bool:
    """Whether a folder is meant to be a bundle, whole or not."""
    return path.is_dir() and (path.suffix == ".edge" or (path / MANIFEST).is_file())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle `folder`. Raises EdgeError, one sentence, for whatever is wrong with it."""
    path = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise EdgeError(f"{folder}: this is a file and no bundle; make one of it with `edgellm pack`.")
    values = _read(path)
    keys = Keys(path, values)
    version = keys.integer("edge")
    if version > VERSION:
        keys.fail("edge", f"is {version}: the bundle was made by a newer edgellm, so update this one")
    mode = keys.text("mode")
    if mode not in MODES:
        keys.fail("mode", f"is {mode[:40]!r}, not one of {', '.join(MODES)}")
    layout = None if mode == "stream" else _layout(path, keys.table("slots"))
    if layout is None and "slots" in keys:
        keys.fail("slots", "is given, although the mode is stream")
    parts = _parts(path, keys.table("parts"))
    for name in (RESIDENT,) if layout is None else (RESIDENT, FFN, NEURONS):
        if name not in parts:
            keys.fail("parts", f"lacks {name}; the bundle is damaged, pack the model again")
    return Manifest(path, values, mode, layout, _thresholds(keys, mode, layout), parts)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises EdgeError for a part that is missing or has another size than the manifest says."""
    for name, part in manifest.parts.items():
        problem = size_problem(folder / name, part)
        if problem:
            raise EdgeError(f"{folder / name}: {problem}; pack the model again, or copy the bundle again.")
    if manifest.layout is not None and manifest.parts[FFN].bytes != manifest.layout.file_bytes:
        raise EdgeError(
            f"{manifest.path}: its slots take {manifest.layout.file_bytes} bytes, but {FFN} has "
            f"{manifest.parts[FFN].bytes}; the bundle is damaged, pack the model again."
        )


def size_problem(path: Path, part: Part) -> str | None:
    """What is wrong with a file at first glance, as half a sentence."""
    if not path.is_file():
        return "this part of the bundle is missing"
    size = path.stat().st_size
    return None if size == part.bytes else f"the file has {size} bytes where {part.bytes} were packed"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise EdgeError(f"{path}: the file has {path.stat().st_size} bytes, too many for a manifest.")
        values = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise EdgeError(
            f"{path}: no such file, so the folder is no bundle, or packing it was not finished; run "
            "`edgellm pack`."
        ) from None
    except OSError as error:
        raise EdgeError(f"{path}: the file cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise EdgeError(
            f"{path}: the file is not valid JSON; the bundle is damaged, pack it again."
        ) from None
    if not isinstance(values, dict):
        raise EdgeError(f"{path}: the file should hold a JSON dictionary, not a {type(values).__name__}.")
    return values


def _layout(path: Path, table: dict[str, Any]) -> SlotLayout:
    keys = Keys(path, table)
    codecs: dict[Any, Any] = keys.table("codecs")
    if set(codecs) not in _ROLES or not all(codec in CODECS for codec in codecs.values()):
        keys.fail("codecs", "does not give up and down one of the codecs " + ", ".join(CODECS))
    alignment, per_slot = keys.integer("alignment"), keys.integer("per_slot")
    if alignment & (alignment - 1) or not LEAST_ALIGNMENT <= alignment <= MOST_ALIGNMENT:
        keys.fail("alignment", f"is {alignment}, not a power of two from {LEAST_ALIGNMENT}")
    if per_slot > MOST_IN_A_SLOT:
        keys.fail("per_slot", f"is {per_slot}, more than {MOST_IN_A_SLOT}")
    layers = keys.integer("layers")
    if layers > _MOST_LAYERS:
        keys.fail("layers", f"is {layers}, more than any model has")
    hidden = keys.integer("hidden")
    if hidden % UNIT:
        keys.fail("hidden", f"is {hidden}, not a multiple of {UNIT}")
    return SlotLayout(layers, keys.integer("neurons"), hidden, codecs, alignment, per_slot)


def _thresholds(keys: Keys, mode: str, layout: SlotLayout | None) -> tuple[float, ...] | None:
    given = keys.get("thresholds", False)
    if given is False:
        if mode == "sparse-threshold":
            keys.fail("thresholds", "is missing, which the mode sparse-threshold needs")
        return None
    good = isinstance(given, list) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e30 and math.isfinite(x)
        for x in given
    )
    if layout is None or not good or len(given) != layout.layers:
        keys.fail("thresholds", "should be a list of finite numbers, one for each layer")
    return tuple(float(x) for x in given)


def _parts(path: Path, table: dict[str, Any]) -> dict[str, Part]:
    parts = {}
    for name, entry in table.items():
        if Path(name).name != name or "\\" in name or not name.isprintable() or len(name) > 255:
            _fail(path, f"names the part {name[:80]!r}, which is not a plain file name")
        size, digest = (entry.get(key) if isinstance(entry, dict) else None for key in ("bytes", "sha256"))
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63:
            _fail(path, f"gives the part {name} no number of bytes")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            _fail(path, f"gives the part {name} no sha256")
        parts[name] = Part(size, digest)
    return parts


def _fail(path: Path, what: str) -> NoReturn:
    raise EdgeError(f"{path}: the manifest {what}; the bundle is damaged, pack the model again.")

"""Open a bundle: the folder in which the neurons of a model's FFNs can be read one by one.

    manifest.json         what it is, and the sizes and checksums of the other files (edge_manifest.py)
    resident.gguf         metadata and every tensor but those in slots; gate, up and what else has an entry
                          for each neuron in the bundle's order, so that it is a model by itself
    ffn.bin               the slots (slots.py)
    neurons.safetensors   order int32 (layers, neurons): neuron i here is order[layer, i] of the source
                          frequency float32 (layers, neurons): share of the tokens for which neuron i fired,
                          where that was measured
                          sums uint64 (layers, slots, 2): checksums of the sections, 0 for one that is empty
                          down_scale float32 (layers, hidden): of the rows of down, if it is ternary
    predictor.safetensors where somebody trained one (flash/predictor.py): tensors too, in float16
                          blk.N.ffn_predictor_down.weight (rank, hidden),
                          blk.N.ffn_predictor_up.weight (neurons, rank), and its bias, float32

In the mode "stream" there is but the manifest and a resident.gguf with all tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, file_ids
from edgellm.formats.edge_manifest import (
    FFN,
    MANIFEST,
    NEURONS,
    PREDICTOR,
    RESIDENT,
    Manifest,
    check_sizes,
    read_manifest,
    superblock,
)
from edgellm.formats.gguf import open_gguf
from edgellm.formats.safetensors import map_safetensors
from edgellm.formats.slots import SUPERBLOCK, Codec, Role, SlotLayout, decode
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor

_TYPES = {"q4_0": "Q4_0", "q8_0": "Q8_0", "t2": "TQ2_0"}
_AT_ONCE = 1024  # neurons that are decoded at a time
IN_SLOTS: tuple[Role, ...] = ("up", "down")  # of which resident.gguf has no tensor where they are in slots
_KINDS = {"I32": "<i4", "F32": "<f4", "U64": "<u8"}


@dataclass(frozen=True)
class Bundle:
    """What a bundle has besides tensors. Arrays as in neurons.safetensors, mapped; layout, order and sums
    are None for the mode "stream"."""

    path: Path
    manifest: Mapping[str, Any]
    layout: SlotLayout | None
    mode: str
    order: np.ndarray | None = None
    frequency: np.ndarray | None = None
    sums: np.ndarray | None = None
    down_scale: np.ndarray | None = None
    thresholds: tuple[float, ...] | None = None


class SlotTensor(LazyTensor):
    """ffn_up (neurons, hidden) or ffn_down (hidden, neurons) of a layer, whose weights lie in slots.

    type is the one most like the slots' codec; there are no rows of that type, so `data` raises EdgeError.
    """

    def __init__(
        self, path: Path, layout: SlotLayout, layer: int, role: Role, slots: np.ndarray,
        scale: np.ndarray | None = None,
    ):  # fmt: skip
        """slots: uint8 (slots, stride), mapped. scale: float32 (hidden,), of the rows of a ternary down."""
        shape = (layout.neurons, layout.hidden) if role == "up" else (layout.hidden, layout.neurons)
        super().__init__(f"blk.{layer}.ffn_{role}.weight", _TYPES[layout.codecs[role]], shape, self._no_rows)
        own = {"path": path, "layout": layout, "role": role, "slots": slots, "scale": scale}
        for field, value in own.items():
            object.__setattr__(self, f"_{field}", value)  # Tensor is frozen

    def _no_rows(self) -> NoReturn:
        raise EdgeError(
            f"{self.__dict__['_path']}: {self.name} lies in slots, each neuron apart, so it cannot be "
            "read as the rows of a tensor; use the file that the bundle was packed from."
        )

    @property
    def codec(self) -> Codec:
        """Of the vectors."""
        layout: SlotLayout = self.__dict__["_layout"]
        return layout.codecs[self.__dict__["_role"]]

    @property
    def nbytes(self) -> int:
        """Of the vectors, without padding."""
        layout: SlotLayout = self.__dict__["_layout"]
        return layout.neurons * layout.nbytes(self.__dict__["_role"])

    def dequantize(self, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """As Tensor's; what is not asked for is decoded too, if it is of down."""
        layout: SlotLayout = self.__dict__["_layout"]
        every = np.arange(layout.neurons)
        if self.__dict__["_role"] == "up":
            wanted = every if rows is None else every[rows]
            values = np.empty((len(wanted), layout.hidden), np.float32)
            for i in range(0, len(wanted), _AT_ONCE):
                values[i : i + _AT_ONCE] = self._vectors(wanted[i : i + _AT_ONCE])
            return values
        picked = np.arange(layout.hidden) if rows is None else np.arange(layout.hidden)[rows]
        values = np.empty((len(picked), layout.neurons), np.float32)
        for i in range(0, layout.neurons, _AT_ONCE):
            values[:, i : i + _AT_ONCE] = self._vectors(every[i : i + _AT_ONCE]).T[picked]
        scale = self.__dict__["_scale"]
        return values if scale is None else values * scale[picked, None]

    def _vectors(self, neurons: np.ndarray) -> np.ndarray:
        """float32 (n, hidden) of integers (n,)."""
        layout, role, slots = (self.__dict__[f"_{field}"] for field in ("layout", "role", "slots"))
        vectors = layout.view(slots[neurons // layout.per_slot], role)
        chosen = vectors[np.arange(len(neurons)), neurons % layout.per_slot]
        return decode(chosen, role, layout.codecs[role])


def open_edge(path: str | Path, *, predictor: bool = True) -> Checkpoint:
    """Open the bundle `path`. Nothing is copied, and of ffn.bin only the superblock is read: edge_verify
    compares the contents with their checksums. predictor: False leaves it out, whatever is the matter
    with it.

    Raises EdgeError, one sentence naming the file, for a part that is missing, damaged, of another size than
    the manifest says, or of another model; and for a bundle that a newer edgellm made.
    """
    path = Path(path)
    names = (MANIFEST, RESIDENT, FFN, NEURONS, *([PREDICTOR] if predictor else []))
    files = file_ids([path / name for name in names if (path / name).is_file()])
    manifest = read_manifest(path)
    check_sizes(path, manifest)
    bundle = Bundle(path, manifest.values, manifest.layout, manifest.mode, thresholds=manifest.thresholds)
    beside: dict[str, Tensor] = {}
    if manifest.layout is not None:
        bundle = _with_neurons(bundle, manifest.layout)
        beside = _slot_tensors(bundle, manifest.layout)
    opened = open_gguf(path / RESIDENT, beside=beside)
    _check_model(manifest, opened)
    tensors = dict(opened.tensors)
    if predictor and manifest.layout is not None and (path / PREDICTOR).is_file():
        tensors |= _predictor_tensors(bundle)
    return Checkpoint(
        path, "edge", opened.config, tensors, opened.metadata, files, opened.assumptions, bundle
    )


def _check_model(manifest: Manifest, opened: Checkpoint) -> None:
    """Is resident.gguf the model that the manifest names?"""
    for key, found in (
        ("architecture", opened.config.architecture),
        ("activation", opened.config.activation),
    ):
        if manifest.values.get(key) != found:
            raise EdgeError(
                f"{manifest.path}: its {key} is {str(manifest.values.get(key))[:40]!r}, but {RESIDENT} has "
                f"{found}; the parts are of different models, pack it again."
            )


def _with_neurons(bundle: Bundle, layout: SlotLayout) -> Bundle:
    """With what neurons.safetensors holds."""
    path = bundle.path / NEURONS
    tensors = map_safetensors(path)
    neurons = (layout.layers, layout.neurons)
    ternary = layout.codecs["down"] == "t2"
    order = _array(path, tensors, "order", "I32", neurons)
    if not (np.sort(order, axis=1) == np.arange(layout.neurons)).all():
        raise EdgeError(
            f"{path}: order does not name each neuron once; the bundle is damaged, pack it again."
        )
    return Bundle(
        bundle.path,
        bundle.manifest,
        layout,
        bundle.mode,
        order,
        _array(path, tensors, "frequency", "F32", neurons) if "frequency" in tensors else None,
        _array(path, tensors, "sums", "U64", (layout.layers, layout.slots, 2)),
        _array(path, tensors, "down_scale", "F32", (layout.layers, layout.hidden)) if ternary else None,
        bundle.thresholds,
    )


def _array(
    path: Path, tensors: Mapping[str, Tensor], name: str, kind: str, shape: tuple[int, ...]
) -> np.ndarray:
    tensor = tensors.get(name)
    if tensor is None or tensor.type != kind or tensor.shape != shape:
        found = "is missing" if tensor is None else f"is {tensor.type} of shape {tensor.shape}"
        raise EdgeError(
            f"{path}: {name} {found}, where the bundle needs {kind} of shape {shape}; it is damaged, pack "
            "the model again."
        )
    values = tensor.data.view(_KINDS[kind])
    if kind == "F32" and not np.isfinite(values).all():
        raise EdgeError(f"{path}: {name} holds values that are not finite; it is damaged, pack it again.")
    return values


def _slot_tensors(bundle: Bundle, layout: SlotLayout) -> dict[str, Tensor]:
    path = bundle.path / FFN
    try:
        content = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise EdgeError(f"{path}: the file cannot be read ({error.strerror or error}).") from None
    if content[:SUPERBLOCK].tobytes() != superblock(layout):
        raise EdgeError(
            f"{path}: the file does not begin with the slots of the manifest; it is damaged or of another "
            "bundle, pack the model again."
        )
    found: dict[str, Tensor] = {}
    for layer in range(layout.layers):
        begin = layout.layer_offset(layer)
        slots = content[begin : begin + layout.layer_bytes].reshape(layout.slots, layout.stride)
        for role in IN_SLOTS:
            if role in layout.codecs:
                ternary_down = role == "down" and bundle.down_scale is not None
                scale = bundle.down_scale[layer] if ternary_down and bundle.down_scale is not None else None
                tensor = SlotTensor(path, layout, layer, role, slots, scale)
                found[tensor.name] = tensor
    return found


def _predictor_tensors(bundle: Bundle) -> dict[str, Tensor]:
    from edgellm.flash.predictor import load

    found: dict[str, Tensor] = {}
    for stored, values in load(bundle.path / PREDICTOR, bundle).items():
        block, _, part = stored.rpartition("predictor_")
        name = f"{block}ffn_predictor_" + ("up.bias" if part == "bias" else f"{part}.weight")
        kind = "F16" if values.dtype == np.float16 else "F32"
        found[name] = Tensor(name, kind, values.shape, values.view(np.uint8))
    return found

"""What packing a model as a bundle comes to, found out before anything is written."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgellm
from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.edge import IN_SLOTS
from edgellm.formats.edge_manifest import LEAST_ALIGNMENT, MODES, MOST_ALIGNMENT, slots_table
from edgellm.formats.edge_neurons import Matrix, choose_codecs
from edgellm.formats.edge_resident import resident_keys, resident_tensors
from edgellm.formats.gguf_writer import NewTensor, encode_value
from edgellm.formats.slots import Codec, Role, SlotLayout

DOWN: dict[str, Codec | None] = {"auto": None, "q4_0": "q4_0", "q8_0": "q8_0"}
RELU = ("relu", "relu2")


@dataclass(frozen=True)
class Options:
    """What edge_pack.pack was asked for, by its names."""

    mode: str
    order: np.ndarray | None = None
    frequency: np.ndarray | None = None
    thresholds: Sequence[float] | None = None
    calibration: Mapping[str, Any] | None = None
    down: str = "auto"
    gate_in_slots: bool = False
    alignment: int = LEAST_ALIGNMENT
    tokenizer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be written. layout and matrices: of what goes into slots; matrices of all layers."""

    checkpoint: Checkpoint
    options: Options
    layout: SlotLayout | None
    matrices: Mapping[Role, Sequence[Matrix]]
    keys: Mapping[str, Any]
    resident: Sequence[NewTensor]

    @property
    def resident_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.resident)

    @property
    def ffn_bytes(self) -> int:
        return 0 if self.layout is None else self.layout.file_bytes

    @property
    def neurons_bytes(self) -> int:
        """At most."""
        layout = self.layout
        if layout is None:
            return 0
        return layout.layers * (8 * layout.neurons + 16 * layout.slots + 4 * layout.hidden)

    def order(self, layer: int) -> np.ndarray:
        """Integers (neurons,): which neurons of the source follow each other in a layer of the bundle."""
        order = self.options.order
        return np.arange(self.checkpoint.config.ffn_size) if order is None else order[layer]

    def identity(self) -> dict[str, Any]:
        """What must be the same for the bundle to be the same."""
        options, keys = self.options, hashlib.sha256()
        for key, value in self.keys.items():
            keys.update(key.encode() + encode_value(value))
        thresholds = options.thresholds
        return {
            "edgellm": edgellm.__version__,
            "source": [list(file) for file in self.checkpoint.files] or os.urandom(8).hex(),
            "keys": keys.hexdigest(),
            "mode": options.mode,
            "slots": None if self.layout is None else slots_table(self.layout),
            "order": _digest(options.order),
            "frequency": _digest(options.frequency),
            "thresholds": None if thresholds is None else list(map(float, thresholds)),
            "calibration": options.calibration,
        }


def _digest(array: np.ndarray | None) -> str | None:
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def plan_pack(checkpoint: Checkpoint, target: Path, options: Options) -> Plan:
    """Raises EdgeError, one sentence, for options that do not fit the model."""
    config, path, order, down = checkpoint.config, checkpoint.path, options.order, options.down
    if options.mode not in MODES:
        raise EdgeError(f"A bundle cannot be packed as {options.mode}; choose one of {', '.join(MODES)}.")
    if down not in DOWN:
        raise EdgeError(f"Columns cannot be packed in {down}; choose one of {', '.join(DOWN)}.")
    refuse_bundle(checkpoint)
    shape = (config.n_layers, config.ffn_size)
    for what, array in (("order", order), ("frequencies", options.frequency)):
        if array is not None and (options.mode == "stream" or array.shape != shape):
            raise EdgeError(
                f"{path}: {what} of neurons are for a bundle with slots, {shape[1]} for each of the "
                f"{shape[0]} layers."
            )
    if order is not None and not (np.sort(order, axis=1) == np.arange(shape[1])).all():
        raise EdgeError(f"{path}: the order of the neurons does not name each of them once.")
    _check_mode(checkpoint, options)
    keys = resident_keys(checkpoint, options.tokenizer)
    if options.mode == "stream":
        return Plan(checkpoint, options, None, {}, keys, resident_tensors(checkpoint, (), None))
    matrices = _matrices(checkpoint, options.gate_in_slots)
    codecs = choose_codecs(matrices, config.hidden_size, DOWN[down])
    alignment = max(options.alignment, LEAST_ALIGNMENT, _direct_alignment(target.parent))
    if alignment & (alignment - 1) or alignment > MOST_ALIGNMENT:
        raise EdgeError(f"{target}: an alignment of {alignment} bytes is no power of two that can be packed.")
    layout = SlotLayout.choose(*shape, config.hidden_size, codecs, alignment)
    left_out = [role for role in IN_SLOTS if role in matrices]
    return Plan(checkpoint, options, layout, matrices, keys, resident_tensors(checkpoint, left_out, order))


def refuse_bundle(checkpoint: Checkpoint) -> None:
    """Raises EdgeError for a bundle, which cannot be packed."""
    if checkpoint.format == "edge":
        raise EdgeError(f"{checkpoint.path}: this is a bundle already; pack the model that it was made from.")


def _check_mode(checkpoint: Checkpoint, options: Options) -> None:
    config, path = checkpoint.config, checkpoint.path
    mode, thresholds = options.mode, options.thresholds
    if mode in ("sparse-exact", "sparse-predicted") and config.activation not in RELU:
        raise EdgeError(
            f"{path}: its activation is {config.activation}, with which no neuron is ever silent, so it "
            f"cannot be packed as {mode}; use --mode stream."
        )
    if (thresholds is not None) != (mode == "sparse-threshold"):
        raise EdgeError(f"{path}: thresholds are needed for sparse-threshold, and for no other mode.")
    if thresholds is not None and not (
        len(thresholds) == config.n_layers and all(math.isfinite(x) for x in thresholds)
    ):
        raise EdgeError(f"{path}: there must be a finite threshold for each of the {config.n_layers} layers.")
    up = checkpoint.tensors["blk.0.ffn_up.weight"]
    if mode != "stream" and up.shape[0] != config.ffn_size:
        raise EdgeError(
            f"{path}: gate and up are one matrix in this model ({config.architecture}), which cannot be "
            "packed in slots; use --mode stream."
        )


def _matrices(checkpoint: Checkpoint, gate_in_slots: bool) -> dict[Role, list[Matrix]]:
    """By role, of all layers, what goes into slots. Without a gate it is up that tells who fires."""
    gated = "blk.0.ffn_gate.weight" in checkpoint.tensors
    if gate_in_slots and not gated:
        raise EdgeError(f"{checkpoint.path}: the FFN of this model has no gate to put into slots.")
    roles: list[Role] = ["up", "down"] if gated else ["down"]
    if gate_in_slots:
        roles.append("gate")
    return {
        role: [_matrix(checkpoint, f"blk.{layer}.ffn_{role}") for layer in range(checkpoint.config.n_layers)]
        for role in roles
    }


def _matrix(checkpoint: Checkpoint, name: str) -> Matrix:
    factor = checkpoint.tensors.get(f"{name}.scale")
    value = np.float32(1) if factor is None else np.float32(factor.dequantize().reshape(-1)[0])
    return Matrix(checkpoint.path, checkpoint.tensors[f"{name}.weight"], value)


def _direct_alignment(folder: Path) -> int:
    """Bytes that reads past the page cache must be multiples of, for files in this folder."""
    from edgellm.flash.files import open_to_read

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".edgellm-") as file:
            fd, alignment, _ = open_to_read(Path(file.name), direct=True)
            os.close(fd)
    except OSError as error:
        raise EdgeError(f"{folder}: cannot be written to ({error.strerror or error}).") from None
    return alignment

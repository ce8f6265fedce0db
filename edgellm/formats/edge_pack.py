"""Pack a model as a bundle, from which single neurons can be read (edge.py says what is in it).

Of the model one layer's down and some rows of its other matrices are in memory at a time. What was done
survives whatever stops it (edge_work.py), and the bundle appears under its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, file_ids
from edgellm.formats.edge import open_edge
from edgellm.formats.edge_manifest import (
    FFN,
    LEAST_ALIGNMENT,
    MANIFEST,
    NEURONS,
    RESIDENT,
    VERSION,
    slots_table,
)
from edgellm.formats.edge_neurons import Loss, column_vectors, row_vectors
from edgellm.formats.edge_plan import Options, Plan, plan_pack
from edgellm.formats.edge_work import LAYERS, PROGRESS, Note, Work, locked_folder, section_sums, write_file
from edgellm.formats.gguf_writer import Progress, write_gguf
from edgellm.formats.slots import Role, SlotLayout
from edgellm.hub.store import CHUNK, replace_folder

_BAND = 8 << 20  # bytes of slots that are put together at a time


@dataclass(frozen=True)
class Packed:
    """What was written. loss: role -> "relative_rms", "lossless", ... as in the manifest."""

    path: Path
    bytes: int
    mode: str
    layout: SlotLayout | None
    loss: Mapping[str, Mapping[str, Any]]

    @property
    def padding_share(self) -> float:
        return 0.0 if self.layout is None else self.layout.padding_share


def pack(
    checkpoint: Checkpoint, out: Path, *, mode: str, order: np.ndarray | None = None,
    frequency: np.ndarray | None = None, thresholds: Sequence[float] | None = None,
    calibration: Mapping[str, Any] | None = None, down: Literal["auto", "q4_0", "q8_0"] = "auto",
    gate_in_slots: bool = False, alignment: int = LEAST_ALIGNMENT,
    tokenizer: Mapping[str, Any] | None = None, force: bool = False, progress: Progress | None = None,
    note: Note | None = None,
) -> Packed:  # fmt: skip
    """Write `checkpoint` as the bundle `out`; an unfinished one with the same options is taken up.

    mode: one of MODES. order: integers (layers, neurons), each row a permutation; frequency: float32 of the
    same shape and in the order of the source; both may be left out. thresholds: one for each layer, for
    "sparse-threshold". calibration: facts for the manifest, JSON. down: the codec of columns that cannot be
    kept as they are; auto: four bits where the source has no more, else eight. alignment: at least, in bytes;
    more where the file system asks for it. tokenizer: its keys, for a Hugging Face folder. force: replace a
    bundle at `out`. progress: told of bytes written, then of bytes read back for their checksums.

    Raises EdgeError, one sentence, for a model or a place that does not fit, and for a source that changed
    meanwhile.
    """
    note = note or (lambda line: None)
    check_place(out, force)
    target = Path(os.path.realpath(out))
    plan = plan_pack(
        checkpoint,
        target,
        Options(mode, order, frequency, thresholds, calibration, down, gate_in_slots, alignment, tokenizer),
    )
    with locked_folder(target) as folder:
        try:
            work = Work(folder, plan.identity(), plan.layout)
            work.begin(out, note)
            work.require_space(out, plan.resident_bytes + plan.ffn_bytes + plan.neurons_bytes + 2 * CHUNK)
            meter = _Meter(progress, 2 * (plan.resident_bytes + plan.ffn_bytes))
            _write_resident(plan, folder, meter)
            _write_layers(plan, work, meter)
            loss = _finish(plan, work, meter)
            _check_source(checkpoint, work)
            _check_result(out, folder)
            size = sum((folder / name).stat().st_size for name in _parts(plan.layout))
            replace_folder(folder, target, target.with_name(f".{target.name}.old"))
        except EdgeError:
            if not (folder / RESIDENT).is_file():
                work.clear()  # nothing that another start could go on with
            raise
        except OSError as error:
            raise EdgeError(
                f"{out}: the bundle cannot be written ({error.strerror or error}); once that is mended, pack "
                "again, and it goes on where it stopped."
            ) from None
    for name in (PROGRESS, LAYERS):
        (target / name).unlink(missing_ok=True)
    return Packed(out, size, mode, plan.layout, loss)


class _Meter:
    """Adds up what was done for `progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def add(self, nbytes: int) -> None:
        self._done = min(self._done + nbytes, self._total)
        if self._progress:
            self._progress(self._done, self._total)


# -- before anything is written


def check_place(out: Path, force: bool) -> None:
    """Raises EdgeError where no bundle can be written: something is there, and not a bundle to replace."""
    if not out.parent.is_dir():
        raise EdgeError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if not out.exists():
        return
    if not (out / MANIFEST).is_file():
        raise EdgeError(f"{out}: this is there already and no bundle; choose another name, as OUT.edge.")
    if not force:
        raise EdgeError(
            f"{out}: this bundle is there already; choose another name, or replace it with --force."
        )


# -- the parts


def _write_resident(plan: Plan, folder: Path, meter: _Meter) -> None:
    path, before = folder / RESIDENT, 0
    if path.is_file():  # it appears when it is whole
        meter.add(plan.resident_bytes)
        return

    def advance(done: int, total: int) -> None:
        nonlocal before
        meter.add(done - before)
        before = done

    write_gguf(path, plan.keys, plan.resident, progress=advance)


def _write_layers(plan: Plan, work: Work, meter: _Meter) -> None:
    layout = plan.layout
    if layout is None:
        return
    with (work.folder / FFN).open("r+b", buffering=0) as file:
        meter.add(len(work.losses) * layout.layer_bytes)
        for layer in range(len(work.losses), layout.layers):
            try:
                sums, scale, losses = _write_layer(plan, layout, file, layer, meter)
            except EdgeError:
                work.clear()  # weights that cannot be packed; another start would not get further
                raise
            os.fsync(file.fileno())
            _check_source(plan.checkpoint, work)
            work.finish_layer(layer, sums, scale, losses)


def _write_layer(
    plan: Plan, layout: SlotLayout, file: Any, layer: int, meter: _Meter
) -> tuple[np.ndarray, np.ndarray | None, dict[Role, Loss]]:
    """Put a layer's neurons into their slots. Returns checksums uint64 (slots, 2), for a ternary
    down the scales of its rows, and what was changed."""
    order = plan.order(layer)
    matrices = {role: layers[layer] for role, layers in plan.matrices.items()}
    columns, scale, lost = column_vectors(matrices["down"], layout.codecs["down"], order)
    matrices["down"].forget()
    losses: dict[Role, Loss] = {"down": lost}
    sums = np.empty((layout.slots, 2), np.uint64)
    step = max(1, _BAND // layout.stride)
    file.seek(layout.layer_offset(layer))
    for first in range(0, layout.slots, step):
        slots = slice(first, min(first + step, layout.slots))
        neurons = slice(slots.start * layout.per_slot, min(slots.stop * layout.per_slot, layout.neurons))
        area = np.zeros((slots.stop - slots.start, layout.stride), np.uint8)
        for role, matrix in matrices.items():
            if role == "down":
                vectors = columns[neurons]
            else:
                vectors, lost = row_vectors(matrix, role, layout.codecs[role], order[neurons])
                losses[role] = losses.get(role, Loss()) + lost
            _put(layout.view(area, role), vectors)
        sums[slots] = section_sums(layout, area)
        left = area.reshape(-1).data
        while left:
            left = left[file.write(left) :]  # less than all of it just before the disk is full
        meter.add(area.nbytes)
    for matrix in matrices.values():
        matrix.forget()
    return sums, scale, losses


def _put(view: np.ndarray, vectors: np.ndarray) -> None:
    """Vectors (n, bytes) into view (slots, per_slot, bytes), whose last slot may have more places."""
    whole = len(vectors) // view.shape[1]
    view[:whole] = vectors[: whole * view.shape[1]].reshape(whole, *view.shape[1:])
    if rest := len(vectors) - whole * view.shape[1]:
        view[whole, :rest] = vectors[-rest:]


def _parts(layout: SlotLayout | None) -> tuple[str, ...]:
    return (RESIDENT, MANIFEST) if layout is None else (RESIDENT, FFN, NEURONS, MANIFEST)


def _finish(plan: Plan, work: Work, meter: _Meter) -> dict[str, dict[str, Any]]:
    """Write neurons.safetensors, and last of all the manifest. Returns what was changed."""
    layout, folder, source = plan.layout, work.folder, plan.checkpoint
    loss: dict[str, dict[str, Any]] = {}
    if layout is not None:
        loss = {role: _summary([each[role] for each in work.losses]) for role in plan.matrices}
        write_file(folder / NEURONS, _neurons(plan, layout, work))
    manifest = {
        "edge": VERSION,
        "source": {
            "name": source.path.resolve().name,
            "files": [{"name": Path(file.path).name, "bytes": file.size} for file in source.files],
            "format": source.format,
        },
        "architecture": source.config.architecture,
        "activation": source.config.activation,
        "mode": plan.options.mode,
        "slots": None if layout is None else slots_table(layout),
        "thresholds": None if plan.options.thresholds is None else list(map(float, plan.options.thresholds)),
        "calibration": plan.options.calibration,
        "loss": loss,
        "padding_share": 0.0 if layout is None else layout.padding_share,
        "parts": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name, meter)}
            for name in _parts(layout)
            if name != MANIFEST
        },
    }
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n")
    return loss


def _neurons(plan: Plan, layout: SlotLayout, work: Work) -> bytes:
    from safetensors.numpy import save

    sums, scales = work.finished()
    order = np.stack([plan.order(layer) for layer in range(layout.layers)])
    arrays = {"order": order.astype(np.int32), "sums": sums}
    if plan.options.frequency is not None:
        arrays["frequency"] = np.take_along_axis(plan.options.frequency, order, axis=1).astype(np.float32)
    if scales is not None:
        arrays["down_scale"] = scales
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _summary(layers: Sequence[Loss]) -> dict[str, Any]:
    worst = max(range(len(layers)), key=lambda layer: layers[layer].relative)
    return {
        "relative_rms": sum(layers, Loss()).relative,
        "lossless": not any(one.error for one in layers),
        "worst_layer": worst,
        "worst_relative_rms": layers[worst].relative,
    }


def _sha256(path: Path, meter: _Meter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    return digest.hexdigest()


# -- the end


def _check_source(checkpoint: Checkpoint, work: Work) -> None:
    if file_ids([Path(file.path) for file in checkpoint.files]) != checkpoint.files:
        work.clear()  # what came of two models is good for nothing
        raise EdgeError(f"{checkpoint.path}: the model changed while it was packed; pack it again.")


def _check_result(out: Path, folder: Path) -> None:
    try:
        open_edge(folder)
    except EdgeError as error:
        raise EdgeError(str(error).replace(str(folder), str(out))) from None

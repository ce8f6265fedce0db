"""Which layout a ternary matrix is packed into: two bits a weight, or base 3, which reads a fifth less and
takes longer to take apart. What is faster depends on the machine and on the shape, so it is measured, once.

The times lie beside the compiled kernels that they are times of, and are forgotten with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median

import numpy as np

from edgellm.cpus import default_threads
from edgellm.executors.native.packing import Packed, form_of, linear_kernel
from edgellm.kernels.compile import kernel_folder, load_kernels
from edgellm.kernels.layout import (
    MOST_BASE3_INPUTS,
    ROWS,
    ZEROS,
    ActLayout,
    Instruction,
    LinearQ,
    State,
    Step,
    align,
    record,
)
from edgellm.kernels.memory import address, aligned, reserve
from edgellm.kernels.simd.level import Target
from edgellm.kernels.team import Team

Shape = tuple[int, int]  # rows, inputs
RATIO = "base 3 / two bits"
BYTES = 96 << 20  # that are read in a pass: beyond most caches, as the matrices of a token together are
ROUNDS = 60  # half a second
WORTH = 0.97  # of the other's time is worth a change of layout; less is noise


def known(target: Target) -> dict[Shape, dict[str, float]]:
    """What was measured before for this target: of each shape the median seconds in either layout, and the
    median of "base 3 / two bits" over pairs of runs, which a change of the machine's speed does not move."""
    try:
        rows = json.loads(_file(target).read_text("utf-8"))
        return {(row["rows"], row["inputs"]): row["median"] for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # not measured yet, or written by something else


def base3_is_faster(shape: Shape, target: Target) -> bool:
    """Whether base 3 was measured to be worth it; False for what was not measured."""
    median = known(target).get(shape)
    return median is not None and median[RATIO] < WORTH


def measure(shapes: Collection[Shape], target: Target) -> None:
    """Measure the shapes that are not known yet, one token on all cores, and remember them.

    Only targets that look up bytes in registers are measured; elsewhere base 3 has no chance.
    """
    found = known(target)
    new = sorted({(n, k) for n, k in shapes if k <= MOST_BASE3_INPUTS} - set(found))
    if not new or not target.byte_permute:
        return
    room = max(BYTES, *(n * k // 2 for n, k in new)) + 4096
    memory = reserve(room, huge_pages=True, what="measuring kernels")
    memory[:] = 0  # which is a valid code of either layout
    team = Team(default_threads(), target)
    try:
        for shape in new:
            found[shape] = _times(shape, team, target, memory)
    finally:
        team.close()
    rows = [{"rows": n, "inputs": k, "median": found[n, k]} for n, k in sorted(found)]
    _write(_file(target), json.dumps(rows, indent=1).encode())


def _times(shape: Shape, team: Team, target: Target, memory: np.ndarray) -> dict[str, float]:
    """What `known` tells of a shape; the layouts take turns. As in a token, one call of the team reads many
    matrices, with a barrier behind each."""
    n, k = shape
    forms = {"two bits": form_of("TQ2_0", k, uniform=True), "base 3": form_of("TQ2_0", k, True, base3=True)}
    kernels = {name: linear_kernel(form, planes=1, rounded=True) for name, form in forms.items()}
    addresses = load_kernels([*kernels.values(), "step"], target)
    act = ActLayout(k)
    x, out = aligned(act.stride * team.threads, np.uint8), aligned(align(n, 5 * ROWS), np.float32)
    zero, barrier = aligned(ZEROS // 4, np.float32), aligned(16, np.int64)
    state = record(State, TOKENS=1, ZERO=address(zero), BARRIER=address(barrier))
    steps, keep = {}, []
    for name, form in forms.items():
        assert not isinstance(form, str)
        matrix = Packed(address(memory), n, k, form)
        fields = {
            "TILE_STRIDE": matrix.stride, "TILES": -(-n // ROWS), "BLOCKS": form.blocks, "INPUT": address(x),
            "INPUT_STRIDE": act.stride, "INPUT_PRIVATE": 1, "ACT_LOW": act.low, "ACT_SCALE": act.scale,
            "ACT_FSUM": act.fsum32, "ACT_START": act.start32, "OUT": address(out), "OUT_STRIDE": out.nbytes,
        }  # fmt: skip
        starts = range(matrix.address, matrix.address + max(1, BYTES - matrix.nbytes), matrix.nbytes)
        arguments = [record(LinearQ, WEIGHT=start, **fields) for start in starts]
        table = aligned(len(Instruction) * len(arguments), np.int64).reshape(-1, len(Instruction))
        table[:] = [(addresses[kernels[name]], address(one), 1, 1, 0, 0) for one in arguments]
        steps[name] = record(Step, COUNT=len(table), TABLE=address(table), TAIL=-1)
        keep += [*arguments, table]
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            team.run(addresses["step"], address(step), address(state))
            seconds[name].append((time.perf_counter() - begin) / int(step[Step.COUNT]))
    pairs = zip(seconds["base 3"], seconds["two bits"], strict=True)
    ratio = median(three / two for three, two in pairs)
    return {name: median(values) for name, values in seconds.items()} | {RATIO: ratio}


def _file(target: Target) -> Path:
    return kernel_folder(target) / "layouts.json"


def _write(path: Path, data: bytes) -> None:
    """Kept if it can be; where not, the next start measures again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(part, path)

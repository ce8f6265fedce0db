"""Measures how fast this machine multiplies and adds: the bound for prefill."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Multiply, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target, host_target
from edgellm.kernels.team import Team

PASS_SECONDS = 0.01
PASSES = 15
SLOTS = 16  # 64-byte values of the left side, which the kernel goes through in turn
TILE_SIDE = 2  # tiles of a side: four sums hide the latency of a tile product
_TILE_BYTES = 1024
_MACS = {"int8": 64, "float": 16, "tiles": 16 * 16 * 64}  # of one product
# Values on the left and the right of a block of products, each with a sum of its own: enough sums to hide
# the latency of an instruction, few enough for all of them to stay in registers.
_BLOCKS = {
    "int8": {"amx": (2, 6), "avx512": (2, 6)},
    "float": {"amx": (2, 6), "avx512": (2, 6), "avx2": (1, 5)},
}
_SMALL_BLOCK = (1, 3)


@dataclass(frozen=True)
class Peak:
    """Multiply-adds per second of a team: of int8 into int32, and of float32."""

    int8: float
    float32: float


def block(target: Target, kind: str) -> tuple[int, int]:
    """(left, right): values of a turn of the kernel's loop on either side."""
    return _BLOCKS[kind].get(target.level, _SMALL_BLOCK)


def measure(threads: int, target: Target | None = None) -> Peak:
    """The rates that `threads` threads together reach on registers; of several passes the best."""
    target = target or host_target()
    team = Team(threads, target)
    try:
        integers = "tiles" if target.tiles else "int8"
        return Peak(_rate(team, target, integers), _rate(team, target, "float"))
    finally:
        team.close()


def _rate(team: Team, target: Target, kind: str) -> float:
    name = f"multiply/kind={kind}"
    kernel = load_kernels([name], target)[name]
    left, right = (TILE_SIDE, TILE_SIDE) if kind == "tiles" else block(target, kind)
    size = 2 * TILE_SIDE * _TILE_BYTES if kind == "tiles" else 64 * (SLOTS + right)
    rng = np.random.default_rng(0)
    values = aligned(size, np.uint8)
    if kind != "float":
        values[:] = rng.integers(0, 16, size)
    else:
        values.view(np.float32)[:] = rng.random(size // 4)
    sums = aligned(16 * team.threads, np.int32)
    args = record(Multiply, ADDRESS=address(values), TURNS=1000, OUT=address(sums))
    best = 0.0
    for _ in range(PASSES):
        start = time.perf_counter()
        team.run(kernel, address(args), 0)
        seconds = time.perf_counter() - start
        best = max(best, int(args[Multiply.TURNS]) / seconds)
        args[Multiply.TURNS] = int(best * PASS_SECONDS)
    return best * left * right * _MACS[kind] * team.threads

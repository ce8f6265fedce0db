"""What the linear kernels share: which thread does which tiles, for which tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgellm.kernels.layout import GROUP, ROWS, State
from edgellm.kernels.simd.scalar import i64_at

TILE_BYTES = 4 * ROWS  # float32 results of one tile


def over_tiles(slots: Any, tile1: Any, tile_group: Any) -> Callable[..., None]:
    """The kernel whose record is `slots` (LinearQ or LinearF): threads share out the tiles.

    tile1 and tile_group are intrinsics (args, weight tile, input row, out, old, old stride, bias) for one
    token and for GROUP: out = W x + old + bias, for 16 rows.
    """

    def linear(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, stride = s[State.TOKENS], a[slots.INPUT_STRIDE]
        x = a[slots.INPUT]
        if tokens == 1:
            x += a[slots.INPUT_PRIVATE] * thread * stride
        first = a[slots.TILES] * thread // threads
        last = a[slots.TILES] * (thread + 1) // threads
        for tile in range(first, last):
            w = a[slots.WEIGHT] + tile * a[slots.TILE_STRIDE]
            out = a[slots.OUT] + tile * TILE_BYTES
            bias = a[slots.BIAS] + tile * TILE_BYTES if a[slots.BIAS] != 0 else s[State.ZERO]
            old, old_stride = (out, a[slots.OUT_STRIDE]) if a[slots.ACCUMULATE] != 0 else (s[State.ZERO], 0)
            if tokens == 1:
                tile1(args, w, x, out, old, old_stride, bias)
            else:
                for t in range(0, tokens, GROUP):
                    at, before = out + t * a[slots.OUT_STRIDE], old + t * old_stride
                    tile_group(args, w, x + t * stride, at, before, old_stride, bias)

    return linear

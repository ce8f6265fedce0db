"""y = W x for float weights (float32, float16, bfloat16), float32 activations and sums.

A tile holds 16 rows: for each input k the 16 weights side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.layout import GROUP, ROWS, State
from edgellm.kernels.layout import LinearF as Arg
from edgellm.kernels.sharing import chunk_tiles, fixed_tiles, next_tiles
from edgellm.kernels.simd.emit import I64, LANES, V16F16, V16F32, V16I16, V16I32, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at

BYTES = {"f32": 4, "f16": 2, "bf16": 2}
TILE_BYTES = 4 * ROWS  # float32 results of one tile
UNROLL = 4  # independent sums of a lone token, to hide the latency of the multiply-add


def load_weights(e: Emit, addr: Any, kind: str) -> Any:
    """16 weights as float32."""
    if kind == "f32":
        return e.load(addr, V16F32, 64)
    if kind == "f16":
        return e.half_to_float(e.load(addr, V16F16, 32))
    bits = e.b.zext(e.load(addr, V16I16, 32), V16I32)
    return e.b.bitcast(e.b.shl(bits, const(V16I32, 16)), V16F32)


def make_tile(target: Target, kind: str, tokens: int, gate: str | None) -> Any:
    """Intrinsic tile(args, weight tile, x row, out, old, old stride, bias) for `tokens` rows."""
    chains = UNROLL if tokens == 1 else 1

    @intrinsic
    def tile(tc: Any, args: Any, w: Any, x: Any, out: Any, old: Any, old_stride: Any, bias: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _emit_tile(Emit(builder, target), *values, kind=kind, tokens=tokens, chains=chains, gate=gate)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


def _emit_tile(
    e: Emit, args: Any, w: Any, x: Any, out: Any, old: Any, old_stride: Any, bias: Any,
    *, kind: str, tokens: int, chains: int, gate: str | None,
) -> None:  # fmt: skip
    b = e.b

    def arg(slot: int) -> ir.Value:
        return e.load(e.offset(args, 8 * slot), I64, 8)

    x_stride, out_stride, inputs = arg(Arg.INPUT_STRIDE), arg(Arg.OUT_STRIDE), arg(Arg.INPUTS)
    rows = [e.offset(x, b.mul(x_stride, e.i64(t))) for t in range(tokens)]

    row_bytes = LANES * BYTES[kind]

    def step(k: Any, sums: list[Any], width: int) -> list[Any]:
        new = list(sums)
        if tokens == 1 and e.target.prefetch_bytes:
            for line in range(e.target.prefetch_bytes, e.target.prefetch_bytes + width * row_bytes, 64):
                e.prefetch(e.offset(w, e.scaled(k, row_bytes), line))
        for c in range(width):
            at = e.offset(k, c)
            weights = load_weights(e, e.offset(w, e.scaled(at, row_bytes)), kind)
            for t, row in enumerate(rows):
                i = t * chains + c
                new[i] = e.fma(weights, e.splat_f32(e.offset(row, e.scaled(at, 4))), new[i])
        return new

    sums = [const(V16F32, 0.0)] * (tokens * chains)
    whole = b.sdiv(inputs, e.i64(chains))
    sums = e.loop(whole, sums, lambda i, *s: step(e.scaled(i, chains), list(s), chains))
    done = e.scaled(whole, chains)
    sums = e.loop(b.sub(inputs, done), sums, lambda i, *s: step(b.add(done, i), list(s), 1))
    offset = e.load(bias, V16F32, 4)
    for t in range(tokens):
        total = sums[t * chains]
        for c in range(1, chains):
            total = b.fadd(total, sums[t * chains + c])
        before = e.load(e.offset(old, b.mul(old_stride, e.i64(t))), V16F32, 4)
        if gate:
            value = b.fmul(ACTIVATIONS[gate](e, before), b.fadd(total, offset))
        else:
            value = b.fadd(total, b.fadd(before, offset))
        e.store(value, e.offset(out, b.mul(out_stride, e.i64(t))), 4)


def build(target: Target, kind: str, gate: str | None = None) -> Callable[..., None]:
    """The kernel linear_f for one weight type, with a gate as in linear_q. Threads share out the tiles."""
    tile1, tile_group = (make_tile(target, kind, tokens, gate) for tokens in (1, GROUP))

    def linear(args: int, state: int, thread: int, threads: int) -> None:
        a, s = i64_at(args), i64_at(state)
        tokens, stride = s[State.TOKENS], a[Arg.INPUT_STRIDE]
        x = a[Arg.INPUT]
        if tokens == 1:
            x += a[Arg.INPUT_PRIVATE] * thread * stride
        tiles = a[Arg.TILES]
        fixed = fixed_tiles(tiles, tiles * a[Arg.TILE_STRIDE] * tokens, threads)
        first, last = fixed * thread // threads, fixed * (thread + 1) // threads
        while first < tiles:
            for tile in range(first, last):
                w = a[Arg.WEIGHT] + tile * a[Arg.TILE_STRIDE]
                out = a[Arg.OUT] + tile * TILE_BYTES
                bias = a[Arg.BIAS] + tile * TILE_BYTES if a[Arg.BIAS] != 0 else s[State.ZERO]
                old, old_stride = (out, a[Arg.OUT_STRIDE]) if a[Arg.ACCUMULATE] != 0 else (s[State.ZERO], 0)
                if tokens == 1:
                    tile1(args, w, x, out, old, old_stride, bias)
                else:
                    for t in range(0, tokens, GROUP):
                        at, before = out + t * a[Arg.OUT_STRIDE], old + t * old_stride
                        tile_group(args, w, x + t * stride, at, before, old_stride, bias)
            first = next_tiles(args + 8 * Arg.NEXT, tiles, fixed, threads)
            last = min(tiles, first + chunk_tiles(tiles, fixed, threads))

    return linear

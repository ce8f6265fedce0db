"""Multiplies and adds from registers as fast as it goes: the yardstick for kernels that compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgellm.kernels.layout import Multiply as Arg
from edgellm.kernels.peak import SLOTS, TILE_SIDE, block
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import I64, V16F32, V16I32, V64I8, Emit, const
from edgellm.kernels.simd.level import Target
from edgellm.kernels.simd.scalar import i64_at
from edgellm.kernels.simd.tiles import TILE_BYTES, Tiles


def build(target: Target, kind: str) -> Callable[..., None]:
    """The kernel multiply. kind: "int8" for dot4 on bytes, 64 multiply-adds each, "float" for float32,
    "tiles" for bytes in tile registers.

    The values at ADDRESS: SLOTS of 64 bytes for the left side, then those of the right side. A turn takes
    the next ones on the left, so that no product can be computed once and kept. Of tiles: TILE_SIDE tiles
    for either side, and a turn multiplies each with each. OUT: the sum of all products; of tiles their
    first row.
    """
    turns = _make_tile_turns(target) if kind == "tiles" else _make_vector_turns(target, kind)

    def multiply(args: int, state: int, thread: int, threads: int) -> None:
        a = i64_at(args)
        turns(a[Arg.ADDRESS], a[Arg.TURNS], a[Arg.OUT] + 64 * thread)

    return multiply


def _make_tile_turns(target: Target) -> Any:
    sides = [range(TILE_SIDE**2 + n * TILE_SIDE, TILE_SIDE**2 + (n + 1) * TILE_SIDE) for n in range(2)]

    @intrinsic
    def turns(typingctx: Any, address: Any, count: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            start, number, out_at = values
            tiles = Tiles(e, [(16, 64)] * (TILE_SIDE**2 + 2 * TILE_SIDE))
            tiles.configure()
            for i in range(TILE_SIDE**2):
                tiles.zero(i)
            for i, register in enumerate([*sides[0], *sides[1]]):
                tiles.load(register, e.offset(start, TILE_BYTES * i), ir.Constant(I64, 64))

            def body(i: Any) -> list[Any]:
                for n, a in enumerate(sides[0]):
                    for m, b in enumerate(sides[1]):
                        tiles.dot(TILE_SIDE * n + m, a, b)
                return []

            e.loop(number, [], body)
            held = e.room(TILE_BYTES)
            total = const(V16I32, 0)
            for i in range(TILE_SIDE**2):
                tiles.store(i, held)
                total = builder.add(total, e.load(held, V16I32, 64))
            tiles.release()
            e.store(total, out_at, 64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return turns


def _make_vector_turns(target: Target, kind: str) -> Any:
    left, right = block(target, kind)
    ty, zero = (V64I8, const(V16I32, 0)) if kind == "int8" else (V16F32, const(V16F32, 0.0))

    @intrinsic
    def turns(typingctx: Any, address: Any, count: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            e = Emit(builder, target)
            start, number, out_at = values
            fixed = [e.load(e.offset(start, 64 * (SLOTS + r)), ty, 64) for r in range(right)]

            def product(total: Any, x: Any, y: Any) -> Any:
                return dot4(e, total, x, y, 15) if kind == "int8" else e.fma(x, y, total)

            def body(i: Any, *sums: Any) -> list[Any]:
                first = e.scaled(builder.and_(i, e.i64(SLOTS // left - 1)), 64 * left)
                base = e.offset(start, first)
                xs = [e.load(e.offset(base, 64 * n), ty, 64) for n in range(left)]
                return [product(s, xs[n // right], fixed[n % right]) for n, s in enumerate(sums)]

            sums = e.loop(number, [zero] * (left * right), body)
            total = sums[0]
            for s in sums[1:]:
                total = builder.add(total, s) if kind == "int8" else builder.fadd(total, s)
            e.store(total, out_at, 64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return turns

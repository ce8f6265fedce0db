"""Tile registers: matrices of int8 that one instruction multiplies (Intel AMX).

C (16 rows of 16 int32) += A (16 rows of n int8) times B (n / 4 rows of 16 columns of 4 uint8, n at most 64):
row r, column c gains the sum over i < n of A[r][i] * B[i / 4][c][i % 4]. A unit of 64 bytes of a packed
weight is a row of B.

Where a target only emulates tiles, memory and dot4 stand in for them: slow, and to test the kernels with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import I8, I64, PTR, V16I32, V64I8, Emit, const

ROWS = 16  # of A and C
TILE_BYTES = 1024
COUNT = 8  # registers


class Tiles:
    """Registers 0 to 7. Of each, `rows` and `row_bytes` say what it holds; configure() before any use."""

    def __init__(self, e: Emit, shapes: list[tuple[int, int]]):
        self.e, self.shapes = e, shapes
        self._memory = None
        if e.target.tiles == "emulated":
            self._memory = self.e.room(COUNT * TILE_BYTES)

    def configure(self) -> None:
        """Set the shapes; leaves every register zero."""
        if self._memory is not None:
            return
        e, b = self.e, self.e.b
        config = self.e.room(64)
        for at in range(0, 64, 8):
            e.store(e.i64(0), e.offset(config, at), 8)
        e.store(ir.Constant(I8, 1), config)  # palette 1
        for number, (rows, row_bytes) in enumerate(self.shapes):
            e.store(ir.Constant(ir.IntType(16), row_bytes), e.offset(config, 16 + 2 * number))
            e.store(ir.Constant(I8, rows), e.offset(config, 48 + number))
        b.call(e.intrinsic("llvm.x86.ldtilecfg", ir.VoidType(), [PTR]), [b.inttoptr(config, PTR)])

    def release(self) -> None:
        """Give the registers back, so that a switch of threads need not save them."""
        if self._memory is None:
            self.e.b.call(self.e.intrinsic("llvm.x86.tilerelease", ir.VoidType(), []), [])

    def zero(self, number: int) -> None:
        if self._memory is None:
            self._call("tilezero", [I8], [ir.Constant(I8, number)])
            return
        self._each_row(number, lambda row: self.e.store(const(V64I8, 0), self._at(number, row), 64))

    def load(self, number: int, address: Any, stride: Any) -> None:
        """Rows `stride` bytes apart."""
        if self._memory is None:
            args = [ir.Constant(I8, number), self.e.b.inttoptr(address, PTR), stride]
            self._call("tileloadd64", [I8, PTR, I64], args)
            return
        vector = ir.VectorType(I8, self.shapes[number][1])

        def one_row(row: Any) -> None:
            at = self.e.offset(address, self.e.b.mul(stride, row))
            self.e.store(self.e.load(at, vector), self._at(number, row), 16)

        self._each_row(number, one_row)

    def dot(self, c: int, a: int, b: int) -> None:
        """C += A B."""
        if self._memory is None:
            self._call("tdpbsud", [I8] * 3, [ir.Constant(I8, n) for n in (c, a, b)])
            return
        e = self.e
        (rows, _), (quads, _) = self.shapes[a], self.shapes[b]

        def one_row(row: Any) -> list[Any]:
            def quad(q: Any, total: Any) -> list[Any]:
                left = e.splat_4xi8(e.offset(self._at(a, row), e.scaled(q, 4)))
                return [dot4(e, total, e.load(self._at(b, q), V64I8, 64), left, 255)]

            (total,) = e.loop(e.i64(quads), [e.load(self._at(c, row), V16I32, 64)], quad)
            e.store(total, self._at(c, row), 64)
            return []

        e.loop(e.i64(rows), [], one_row)

    def store(self, number: int, address: Any) -> None:
        """Rows of 64 bytes side by side."""
        if self._memory is None:
            args = [ir.Constant(I8, number), self.e.b.inttoptr(address, PTR), self.e.i64(64)]
            self._call("tilestored64", [I8, PTR, I64], args)
            return
        e = self.e

        def one_row(row: Any) -> None:
            e.store(e.load(self._at(number, row), V64I8, 64), e.offset(address, e.scaled(row, 64)), 64)

        self._each_row(number, one_row)

    def _each_row(self, number: int, body: Callable[[Any], None]) -> None:
        def one(row: Any) -> list[Any]:
            body(row)
            return []

        self.e.loop(self.e.i64(self.shapes[number][0]), [], one)

    def _at(self, number: int, row: Any) -> Any:
        return self.e.offset(self._memory, TILE_BYTES * number, self.e.scaled(row, 64))

    def _call(self, name: str, types: list[ir.Type], args: list[Any]) -> None:
        self.e.b.call(self.e.intrinsic(f"llvm.x86.{name}", ir.VoidType(), types), args)

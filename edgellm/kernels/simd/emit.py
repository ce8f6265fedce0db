"""Writes LLVM vector IR: a thin layer over llvmlite's builder, the same for every instruction set.

Vectors are logical: 16 float32 lanes everywhere. LLVM splits them into what the target has (one zmm,
two ymm, four NEON registers), so a kernel is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from edgellm.kernels.simd.level import Target

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
LANES = 16
V16F32, V16I32, V16F16 = (ir.VectorType(t, LANES) for t in (F32, I32, F16))
V16I8, V16I16, V64I8 = ir.VectorType(I8, 16), ir.VectorType(I16, 16), ir.VectorType(I8, 64)
FAST = ("contract", "nsz")  # fused multiply-add is welcome; sums keep their written order
PTR = ir.PointerType()


def const(ty: ir.Type, value: Any) -> ir.Constant:
    """A constant; a number is repeated over all lanes of a vector type."""
    if isinstance(ty, ir.VectorType) and not isinstance(value, (list, tuple)):
        value = [value] * ty.count
    return ir.Constant(ty, value)


class Emit:
    """Emits code at the builder's position. Addresses are i64 values, offsets in bytes."""

    def __init__(self, builder: ir.IRBuilder, target: Target):
        self.b = builder
        self.target = target

    def i64(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def offset(self, base: Any, *terms: Any) -> Any:
        """base + terms[0] + terms[1] + ...; integers are constants."""
        for term in terms:
            if isinstance(term, int):
                if term == 0:
                    continue
                term = self.i64(term)
            base = self.b.add(base, term)
        return base

    def scaled(self, index: Any, factor: int) -> Any:
        return self.b.mul(index, self.i64(factor))

    def room(self, nbytes: int) -> Any:
        """Address of `nbytes` on the stack, a multiple of 64; the same at every turn of a loop around it."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(I8, nbytes))
        slot.align = 64
        return self.b.ptrtoint(slot, I64)

    def load(self, addr: Any, ty: ir.Type, align: int = 1) -> Any:
        return self.b.load(self.b.inttoptr(addr, PTR), typ=ty, align=align)

    def store(self, value: Any, addr: Any, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(addr, PTR), align=align)

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        ty = ir.VectorType(scalar.type, lanes)
        undef = ir.Constant(ty, ir.Undefined)
        one = self.b.insert_element(undef, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def splat_f32(self, addr: Any) -> Any:
        """The float32 at addr in all 16 lanes."""
        return self.splat(self.load(addr, F32, 4))

    def splat_4xi8(self, addr: Any) -> Any:
        """The four int8 at addr, repeated 16 times: (64,) int8."""
        return self.b.bitcast(self.splat(self.load(addr, I32, 4)), V64I8)

    def fma(self, x: Any, y: Any, acc: Any) -> Any:
        """x * y + acc, fused where the target can."""
        if self.target.level == "generic" and self.target.triple.startswith("x86"):
            return self.b.fadd(self.b.fmul(x, y, flags=FAST), acc, flags=FAST)
        fn = self.intrinsic(f"llvm.fma.v{x.type.count}f32", x.type, [x.type] * 3)
        return self.b.call(fn, [x, y, acc])

    def intrinsic(self, name: str, ret: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
        module = self.b.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(ret, list(args)), name)

    def max(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def shuffle(self, x: Any, mask: Sequence[int], y: Any = None) -> Any:
        y = ir.Constant(x.type, ir.Undefined) if y is None else y
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(mask)), list(mask)))

    def reduce_all(self, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """As reduce, the result in all lanes."""
        n = x.type.count
        step = n // 2
        while step:
            x = combine(x, self.shuffle(x, [i ^ step for i in range(n)]))
            step //= 2
        return x

    def reduce(self, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Combine all lanes of x pairwise into a scalar, always in the same order."""
        n = x.type.count
        while n > 1:
            half = n // 2
            x = combine(self.shuffle(x, range(half)), self.shuffle(x, range(half, n)))
            n = half
        return self.b.extract_element(x, ir.Constant(I32, 0))

    def half_to_float(self, h: Any) -> Any:
        """(16,) float16 bits, as loaded with V16F16, to float32. Exact for all finite values."""
        b = self.b
        if self.target.half_conversion:
            return b.fpext(h, V16F32)
        bits = b.zext(b.bitcast(h, V16I16), V16I32)
        magnitude = b.shl(b.and_(bits, const(V16I32, 0x7FFF)), const(V16I32, 13))
        sign = b.shl(b.and_(bits, const(V16I32, 0x8000)), const(V16I32, 16))
        scaled = b.fmul(b.bitcast(magnitude, V16F32), const(V16F32, 2.0**112))
        return b.bitcast(b.or_(b.bitcast(scaled, V16I32), sign), V16F32)

    def float_to_half(self, x: Any) -> Any:
        """(16,) float32 to float16, round to nearest even; beyond 65504 it becomes infinity."""
        b = self.b
        if self.target.half_conversion:
            return b.fptrunc(x, V16F16)
        bits = b.bitcast(x, V16I32)
        sign = b.and_(bits, const(V16I32, -0x80000000))
        mag = b.xor(bits, sign)
        # Subnormal halves: adding 0.5 aligns the mantissa, and the float unit rounds it.
        half = const(V16F32, 0.5)
        small = b.sub(b.bitcast(b.fadd(b.bitcast(mag, V16F32), half), V16I32), b.bitcast(half, V16I32))
        odd = b.and_(b.lshr(mag, const(V16I32, 13)), const(V16I32, 1))
        normal = b.add(b.add(mag, const(V16I32, ((15 - 127) << 23) + 0xFFF)), odd)
        normal = b.lshr(normal, const(V16I32, 13))
        out = b.select(b.icmp_unsigned("<", mag, const(V16I32, 113 << 23)), small, normal)
        too_big = b.icmp_unsigned(">=", mag, const(V16I32, 0x477FF000))
        out = b.select(too_big, const(V16I32, 0x7C00), out)
        nan = b.icmp_unsigned(">", mag, const(V16I32, 0x7F800000))
        out = b.select(nan, const(V16I32, 0x7E00), out)
        out = b.or_(out, b.lshr(sign, const(V16I32, 16)))
        return b.bitcast(b.trunc(out, V16I16), V16F16)

    def exp(self, x: Any) -> Any:
        """e^x for (16,) float32, 2 ulp; below -87 it is 0. Cephes' expf, without branches."""
        b = self.b
        x = b.select(b.fcmp_ordered("<", x, const(V16F32, 88.0)), x, const(V16F32, 88.0))
        tiny = b.fcmp_ordered("<", x, const(V16F32, -87.0))
        x = b.select(tiny, const(V16F32, -87.0), x)
        n = self.round(b.fmul(x, const(V16F32, 1.44269504088896341)))
        r = self.fma(n, const(V16F32, -0.693359375), x)
        r = self.fma(n, const(V16F32, 2.12194440e-4), r)
        p = const(V16F32, 1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self.fma(p, r, const(V16F32, c))
        p = self.fma(p, b.fmul(r, r), b.fadd(r, const(V16F32, 1.0)))
        power = b.shl(b.add(b.fptosi(n, V16I32), const(V16I32, 127)), const(V16I32, 23))
        y = b.fmul(p, b.bitcast(power, V16F32))
        return b.select(tiny, const(V16F32, 0.0), y)

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + e^-x)"""
        one = const(V16F32, 1.0)
        return self.b.fdiv(one, self.b.fadd(one, self.exp(self.b.fneg(x))))

    def softcap(self, x: Any, cap: Any) -> Any:
        """cap * tanh(x / cap), the tanh as 2 sigmoid(2 x / cap) - 1; cap is a vector."""
        b = self.b
        ratio = b.fdiv(x, cap)
        doubled = b.fmul(const(V16F32, 2.0), self.sigmoid(b.fadd(ratio, ratio)))
        return b.fmul(cap, b.fsub(doubled, const(V16F32, 1.0)))

    def round(self, x: Any) -> Any:
        """To the nearest integer, ties to even, for |x| < 2^22."""
        magic = const(x.type, 12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction
        return self.b.fsub(self.b.fadd(x, magic), magic)

    def prefetch(self, addr: Any, locality: int = 3) -> None:
        """Begin to read the cache line at addr; locality 3: into the nearest cache, 2: into the next one,
        which can wait for more lines at a time."""
        fn = self.intrinsic("llvm.prefetch.p0", ir.VoidType(), [PTR, I32, I32, I32])
        args = [ir.Constant(I32, n) for n in (0, locality, 1)]
        self.b.call(fn, [self.b.inttoptr(addr, PTR), *args])

    def loop(self, count: Any, state: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
        """for i in range(count): state = body(i, *state). Returns the last state; count may be 0."""
        b = self.b
        before = b.block
        head, inside, after = (b.append_basic_block(n) for n in ("loop", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        phis = [b.phi(s.type) for s in state]
        for phi, value in zip([i, *phis], [self.i64(0), *state], strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        new = body(i, *phis)
        for phi, value in zip([i, *phis], [b.add(i, self.i64(1)), *new], strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return phis

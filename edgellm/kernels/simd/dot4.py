"""dot4: the integer heart of every quantised matmul.

acc[r] += sum over i < 4 of u[4 r + i] * s[4 r + i], for 16 rows r; u is uint8, s is int8, acc int32.
Exact on every level, for every u in 0..255 and s in -128..127 (the low plane of activations has -128).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from edgellm.kernels.simd.emit import I8, I16, I32, V16I8, V16I32, V64I8, Emit, const

_V32I8, _V16I16, _V8I32 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
_V8I8, _V8I16, _V4I32 = ir.VectorType(I8, 8), ir.VectorType(I16, 8), ir.VectorType(I32, 4)


def dot4(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """acc + dot4(u, s). u_max is the largest value u can have: 127 and less has a faster form on the levels
    without an instruction for unsigned times signed bytes (avx2, neon, dotprod)."""
    return _FORMS[e.target.level](e, acc, u, s, u_max)


def _vnni512(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    name = "llvm.x86.avx512.vpdpbusd.512"
    if llvm.llvm_version_info[0] >= 22:  # the operands became byte vectors in LLVM 22
        return e.b.call(e.intrinsic(name, V16I32, [V16I32, V64I8, V64I8]), [acc, u, s])
    fn = e.intrinsic(name, V16I32, [V16I32] * 3)
    return e.b.call(fn, [acc, e.b.bitcast(u, V16I32), e.b.bitcast(s, V16I32)])


def _avx2(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """vpmaddubsw saturates at 32767, so a u above 127 is split into its low 7 bits and its top bit."""
    b = e.b
    ubsw = e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", _V16I16, [_V32I8, _V32I8])
    wd = e.intrinsic("llvm.x86.avx2.pmadd.wd", _V8I32, [_V16I16, _V16I16])
    ones = const(_V16I16, 1)
    halves = []
    for h in range(2):
        lanes = range(32 * h, 32 * h + 32)
        uh, sh = e.shuffle(u, lanes), e.shuffle(s, lanes)
        low = uh if u_max <= 127 else b.and_(uh, const(_V32I8, 127))
        total = b.call(wd, [b.call(ubsw, [low, sh]), ones])
        if u_max > 127:
            top = b.lshr(uh, const(_V32I8, 7))
            total = b.add(total, b.shl(b.call(wd, [b.call(ubsw, [top, sh]), ones]), const(_V8I32, 7)))
        halves.append(total)
    return b.add(acc, e.shuffle(halves[0], range(16), halves[1]))


def _generic(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """Plain vector IR; every product fits 16 bits."""
    b = e.b
    wide = ir.VectorType(I16, 64)
    products = b.mul(b.zext(u, wide), b.sext(s, wide))
    for i in range(4):
        acc = b.add(acc, b.sext(e.shuffle(products, range(i, 64, 4)), V16I32))
    return acc


def _quarters(e: Emit, acc: Any, u: Any, s: Any, form: Callable[[Any, Any, Any], Any]) -> Any:
    """form(acc, u, s) on each 16 bytes, which is what a NEON register holds."""
    parts = []
    for q in range(4):
        lanes = range(16 * q, 16 * q + 16)
        parts.append(form(e.shuffle(acc, range(4 * q, 4 * q + 4)), e.shuffle(u, lanes), e.shuffle(s, lanes)))
    halves = [e.shuffle(parts[i], range(8), parts[i + 1]) for i in (0, 2)]
    return e.shuffle(halves[0], range(16), halves[1])


def _i8mm(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    usdot = e.intrinsic("llvm.aarch64.neon.usdot.v4i32.v16i8", _V4I32, [_V4I32, V16I8, V16I8])
    return _quarters(e, acc, u, s, lambda a, x, y: e.b.call(usdot, [a, x, y]))


def _dotprod(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """sdot takes signed bytes: a u above 127 goes in as u - 128, and 128 times the sum of s is added back
    (s is mostly one group of four inputs repeated, whose sum LLVM then computes once)."""
    b = e.b
    sdot = e.intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", _V4I32, [_V4I32, V16I8, V16I8])

    def signed(a: Any, x: Any, y: Any) -> Any:
        return b.call(sdot, [a, x, y])

    def biased(a: Any, x: Any, y: Any) -> Any:
        sums = b.call(sdot, [const(_V4I32, 0), const(V16I8, 1), y])
        return signed(b.add(a, b.shl(sums, const(_V4I32, 7))), b.xor(x, const(V16I8, -128)), y)

    return _quarters(e, acc, u, s, signed if u_max <= 127 else biased)


def _neon(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """Products of 16 bits, added in neighbouring pairs: two of them fit 16 bits only if u is at most 127."""
    b = e.b
    smull = e.intrinsic("llvm.aarch64.neon.smull.v8i16", _V8I16, [_V8I8, _V8I8])
    addp16 = e.intrinsic("llvm.aarch64.neon.addp.v8i16", _V8I16, [_V8I16, _V8I16])
    addp32 = e.intrinsic("llvm.aarch64.neon.addp.v4i32", _V4I32, [_V4I32, _V4I32])
    saddlp = e.intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", _V4I32, [_V8I16])
    low, high = range(8), range(8, 16)

    def small(a: Any, x: Any, y: Any) -> Any:
        products = [b.call(smull, [e.shuffle(x, half), e.shuffle(y, half)]) for half in (low, high)]
        return b.add(a, b.call(saddlp, [b.call(addp16, products)]))

    def large(a: Any, x: Any, y: Any) -> Any:
        pairs = []
        for half in (low, high):
            wide = b.mul(b.zext(e.shuffle(x, half), _V8I16), b.sext(e.shuffle(y, half), _V8I16))
            pairs.append(b.call(saddlp, [wide]))
        return b.add(a, b.call(addp32, pairs))

    return _quarters(e, acc, u, s, small if u_max <= 127 else large)


_FORMS = {
    "generic": _generic,
    "avx2": _avx2,
    "amx": _vnni512,
    "avx512": _vnni512,
    "neon": _neon,
    "dotprod": _dotprod,
    "i8mm": _i8mm,
}

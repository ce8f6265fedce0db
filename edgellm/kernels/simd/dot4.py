"""dot4: the integer heart of every quantised matmul.

acc[r] += sum over i < 4 of u[4 r + i] * s[4 r + i], for 16 rows r; u is uint8, s is int8, acc int32.
Exact on every level, for every u in 0..255 and s in -127..127.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from edgellm.kernels.simd.emit import I8, I16, I32, V16I32, V64I8, Emit, const

_V32I8, _V16I16, _V8I32 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)


def dot4(e: Emit, acc: Any, u: Any, s: Any, u_max: int) -> Any:
    """acc + dot4(u, s). u_max is the largest value u can have: 127 and less has a faster AVX2 form."""
    return {"avx512": _vnni512, "avx2": _avx2, "generic": _generic}[e.target.level](e, acc, u, s, u_max)


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

"""Which instruction set the kernels are generated for.

EDGELLM_SIMD=LEVEL forces one of the architecture's levels; without it the host's best one is taken.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

from edgellm.errors import EdgeError


@dataclass(frozen=True)
class _Level:
    """What a level needs of a CPU, in LLVM's names for features, and what LLVM may assume when it is forced,
    so that auto-vectorised code obeys it too."""

    needs: tuple[str, ...]
    cpu: str
    features: str = ""


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma")
# Of each architecture, from the plainest to the best. "generic" is plain vector IR everywhere.
_LEVELS = {
    "x86_64": {
        "generic": _Level((), "x86-64"),
        "avx2": _Level(("avx2", "fma", "f16c"), "haswell"),
        "avx512": _Level(_AVX512, "cascadelake"),
        # Vectors of AVX-512, and in matmuls of many tokens tile registers.
        "amx": _Level((*_AVX512, "amx-tile", "amx-int8"), "cascadelake", "+amx-tile,+amx-int8"),
    },
    "aarch64": {
        "generic": _Level((), "generic"),
        "neon": _Level((), "generic"),  # Armv8-A has it
        "dotprod": _Level(("dotprod",), "generic", "+dotprod"),
        "i8mm": _Level(("dotprod", "i8mm"), "generic", "+dotprod,+i8mm"),
    },
}
LEVELS = {arch: tuple(levels) for arch, levels in _LEVELS.items()}

# Linux's own word on aarch64: a bit of an entry of the auxiliary vector (AT_HWCAP 16, AT_HWCAP2 26). LLVM
# reads /proc/cpuinfo instead, which under an emulator describes the emulating machine.
_HWCAP = {"dotprod": (16, 20), "i8mm": (26, 13)}


@dataclass(frozen=True)
class Target:
    """What code is generated for: the primitives' level, and LLVM's CPU name and feature string."""

    level: str
    triple: str
    cpu: str
    features: str
    emulate_tiles: bool = False  # of a target without tile registers, to test the kernels that use them

    @property
    def tiles(self) -> str:
        """Where tile registers come from: "amx", "emulated", or "" for none."""
        return "amx" if self.level == "amx" else "emulated" if self.emulate_tiles else ""

    @property
    def half_conversion(self) -> bool:
        """Has instructions between half and single precision (else done with integer arithmetic)."""
        return self.level != "generic" or arch_of(self.triple) == "aarch64"

    @property
    def wide(self) -> bool:
        """Has 32 registers of 512 bits, each a whole logical vector."""
        return self.level in ("avx512", "amx")

    @property
    def byte_permute(self) -> bool:
        """Looks up 64 bytes at once in tables of 128 (AVX-512 VBMI)."""
        return self.wide and "+avx512vbmi" in self.features.split(",")

    @property
    def prefetch_bytes(self) -> int:
        """How far ahead of a lone stream of weights to prefetch; 0 leaves it to the CPU: AMD's Zen reads a
        fifth faster so (24 against 19 GB/s on one core of a Zen 4)."""
        return 0 if self.cpu.startswith("znver") else 4096


def arch_of(triple: str) -> str:
    """The architecture of an LLVM triple, under one name: "x86_64", "aarch64", or what the triple says."""
    arch = triple.split("-")[0]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(arch, arch)


def host_levels() -> tuple[str, ...]:
    """The levels that this host can run, from the plainest to the best."""
    arch = arch_of(llvm.get_process_triple())
    if arch not in _LEVELS:
        return ("generic",)
    features = llvm.get_host_cpu_features()
    bits = _HWCAP if arch == "aarch64" else {}

    def has(name: str) -> bool:
        return bool(features.get(name)) or (name in bits and _auxiliary_bit(*bits[name]))

    levels = [name for name, level in _LEVELS[arch].items() if all(map(has, level.needs))]
    if "amx" in levels and not _tiles_permitted():
        levels.remove("amx")
    return tuple(levels)


@cache
def _tiles_permitted() -> bool:
    """Ask Linux for AMX's tile data, once for all threads of the process: a first use without asking ends it.

    https://docs.kernel.org/arch/x86/xstate.html
    """
    if sys.platform != "linux":
        return False
    number, request, tile_data = 158, 0x1023, 18  # arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return ctypes.CDLL(None, use_errno=True).syscall(number, request, tile_data) == 0


def _auxiliary_bit(entry: int, bit: int) -> bool:
    """A bit of this process's auxiliary vector; False where the C library has none."""
    if os.name != "posix":
        return False
    get = getattr(ctypes.CDLL(None), "getauxval", None)
    if get is None:
        return False
    get.restype, get.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(get(entry) >> bit & 1)


def target_for(level: str, triple: str) -> Target:
    """The target of a level on any machine of the triple's architecture, which need not be the host's.

    Raises EdgeError when the architecture has no such level.
    """
    arch = arch_of(triple)
    levels = _LEVELS.get(arch, {})
    if level not in levels:
        names = ", ".join(levels) or "none"
        raise EdgeError(f"There is no SIMD level {level} for {arch}; its levels: {names}.")
    return Target(level, triple, levels[level].cpu, levels[level].features)


def host_target(level: str | None = None) -> Target:
    """The target for this host. Raises EdgeError when EDGELLM_SIMD names a level that it cannot run."""
    available = host_levels()
    forced = level or os.environ.get("EDGELLM_SIMD") or None
    triple = llvm.get_process_triple()
    if forced is not None and forced not in available:
        raise EdgeError(f"EDGELLM_SIMD={forced} cannot run on this CPU; it can run: {', '.join(available)}.")
    arch = arch_of(triple)
    if forced is not None and arch in _LEVELS:
        return target_for(forced, triple)
    features = llvm.get_host_cpu_features().flatten()
    if arch == "aarch64":  # LLVM may not have seen what the level stands on
        features = ",".join(filter(None, [features, _LEVELS[arch][available[-1]].features]))
    return Target(available[-1], triple, llvm.get_host_cpu_name(), features)

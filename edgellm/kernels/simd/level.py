"""Which instruction set the kernels are generated for.

EDGELLM_SIMD=generic|avx2|avx512 forces a level; without it the host's best one is taken.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from edgellm.errors import EdgeError

LEVELS = ("generic", "avx2", "avx512")
_NEEDS = {
    "generic": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"),
}
# The CPU that LLVM may assume when a level is forced, so that auto-vectorised code obeys it too.
_FORCED_CPU = {"generic": "x86-64", "avx2": "haswell", "avx512": "cascadelake"}


@dataclass(frozen=True)
class Target:
    """What code is generated for: the primitives' level, and LLVM's CPU name and feature string."""

    level: str
    triple: str
    cpu: str
    features: str

    @property
    def half_conversion(self) -> bool:
        """Has instructions between half and single precision (else done with integer arithmetic)."""
        return self.level != "generic" or self.triple.startswith("aarch64")


def host_levels() -> tuple[str, ...]:
    """The levels that this host can run, from the plainest to the best."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("generic",)
    features = llvm.get_host_cpu_features()
    return tuple(level for level in LEVELS if all(features.get(name) for name in _NEEDS[level]))


def host_target(level: str | None = None) -> Target:
    """The target for this host. Raises EdgeError when EDGELLM_SIMD names a level that it cannot run."""
    available = host_levels()
    forced = level or os.environ.get("EDGELLM_SIMD") or None
    triple = llvm.get_process_triple()
    if forced is None:
        features = llvm.get_host_cpu_features().flatten()
        return Target(available[-1], triple, llvm.get_host_cpu_name(), features)
    if forced not in available:
        raise EdgeError(f"EDGELLM_SIMD={forced} cannot run on this CPU; it can run: {', '.join(available)}.")
    if not triple.startswith("x86_64"):
        return Target(forced, triple, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return Target(forced, triple, _FORCED_CPU[forced], "")

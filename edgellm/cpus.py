"""How many threads this process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """Physical cores this process may run on, at most its cgroup's CPU quota, at least 1.

    Two hyper-threads of one core share the units that the kernels saturate, so a core counts once.
    """
    cores = len({_core_of(cpu) for cpu in available_cpus()})
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def available_cpus() -> set[int]:
    """Numbers of the logical CPUs that this process is allowed on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> str:
    """A name for the physical core of a logical CPU: its list of siblings, where Linux tells it."""
    siblings = _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
    return siblings or str(cpu)


def cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the cgroup (version 2, or 1) grants; None where there is no limit."""
    quota, _, period = _read(root / "cpu.max").partition(" ")
    if not quota:
        quota = _read(root / "cpu" / "cpu.cfs_quota_us")
        period = _read(root / "cpu" / "cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:  # "max", "-1" or no such file
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

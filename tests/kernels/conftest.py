"""Every instruction-set level that the host has, and a way to run one kernel on a team of one or more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import ZEROS, State, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target, host_levels, host_target
from edgellm.kernels.team import call_kernel

RunKernel = Callable[..., None]


@pytest.fixture(scope="session", params=host_levels())
def target(request: pytest.FixtureRequest) -> Target:
    return host_target(request.param)


@pytest.fixture(scope="session")
def run_kernel() -> RunKernel:
    """run(target, kernel, args record, **state fields): the kernel on one thread."""
    zero, barrier = aligned(ZEROS // 4, np.float32), aligned(16, np.int64)

    def run(target: Target, kernel: str, args: np.ndarray, **state: int) -> None:
        fields = {"TOKENS": 1, "ZERO": address(zero), "BARRIER": address(barrier), **state}
        state_record = record(State, **fields)
        call_kernel(load_kernels([kernel], target)[kernel], address(args), address(state_record))

    return run


def array(values: np.ndarray, padding: int = 0) -> np.ndarray:
    """A 64-byte aligned copy with `padding` zero elements behind it."""
    flat = aligned(values.size + padding, values.dtype)
    flat[: values.size] = values.ravel()
    return flat

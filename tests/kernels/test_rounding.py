"""Inputs rounded to whole 127ths of each row's largest magnitude, as the reference executor rounds them."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.executors.reference import rounded
from edgellm.kernels.layout import RoundRows, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target
from tests.kernels.test_linear import integers_of, quantize


def rows(tokens: int, k: int) -> np.ndarray:
    """Random ones, among them a row of zeros and one of tiny values, and the largest at either end."""
    x = aligned(tokens * k, np.float32).reshape(tokens, k)
    x[:] = np.random.default_rng(tokens).standard_normal((tokens, k)) * np.logspace(-3, 3, tokens)[:, None]
    x[0, -1] = -2 * np.abs(x[0]).max()
    if tokens > 2:
        x[1] = 0
        x[2] *= 1e-9
    return x


@pytest.mark.parametrize("tokens", [1, 7])
def test_codes_are_those_of_the_reference(run_kernel, target: Target, tokens: int) -> None:
    x = rows(tokens, 160)
    act, layout = quantize(run_kernel, target, x, 1, shift=1, rounding=True)
    q, scale = integers_of(act, layout, 1)
    expected = rounded(x, "int8")
    top = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5))
    np.testing.assert_array_equal(q, np.round(x * (np.float32(127) / top)))
    assert (scale == scale[:, :1]).all()
    np.testing.assert_allclose(q * scale[:, :1], expected, rtol=3e-7)
    start = act[:, layout.start32 : layout.fsum16].copy().view(np.int32)
    np.testing.assert_array_equal(start, -2 * q.reshape(tokens, 5, 32).sum(-1))


@pytest.mark.parametrize("tokens", [1, 7])
def test_rows_of_floats_are_those_of_the_reference(run_kernel, target: Target, tokens: int) -> None:
    k = 75
    x, out = rows(tokens, k), aligned(tokens * k, np.float32).reshape(tokens, k)
    args = record(
        RoundRows, X=address(x), X_STRIDE=4 * k, X_PRIVATE=1, OUT=address(out), OUT_STRIDE=4 * k, WIDTH=k
    )
    run_kernel(target, "round_rows", args, TOKENS=tokens)
    np.testing.assert_array_equal(out, rounded(x, "int8"))

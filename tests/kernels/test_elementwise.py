"""Norm, rope and the elementwise kernels against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.kernels.layout import Elementwise, Norm, Rope, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target


def matrix(rows: int, columns: int, seed: int, spread: float = 1.0) -> np.ndarray:
    out = aligned(rows * columns, np.float32).reshape(rows, columns)
    out[:] = np.random.default_rng(seed).standard_normal((rows, columns)) * spread
    return out


def exact_function(name: str, x: np.ndarray, y: np.ndarray, factor: float) -> np.ndarray:
    x = x.astype(np.float64)
    erf = np.vectorize(math.erf)
    functions = {
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu_tanh": lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda: x / 2 * (1 + erf(x / math.sqrt(2))),
        "relu": lambda: np.maximum(x, 0),
        "relu2": lambda: np.maximum(x, 0) ** 2,
        "add": lambda: x + y,
        "scale": lambda: factor * x,
        "softcap": lambda: factor * np.tanh(x / factor),
    }
    return functions[name]()


@pytest.mark.parametrize(
    "function",
    ["silu", "gelu_tanh", "gelu", "relu", "relu2", "add", "scale", "softcap"],
)
def test_elementwise_matches_numpy(run_kernel, target: Target, function: str) -> None:
    x, y, out = matrix(3, 48, 1, 6.0), matrix(3, 48, 2), matrix(3, 48, 3)
    x[0, :4] = -50, 50, 0, -0.0
    args = record(
        Elementwise, X=address(x), X_STRIDE=192, Y=address(y), Y_STRIDE=192, OUT=address(out), OUT_STRIDE=192,
        VECTORS=3, FACTOR=30.0,
    )  # fmt: skip
    run_kernel(target, f"elementwise/function={function}", args, TOKENS=3)
    atol = 30.0 * 2.0**-22 if function == "softcap" else 2e-6  # tanh near 0 is a difference of near-ones
    np.testing.assert_allclose(out, exact_function(function, x, y, 30.0), rtol=2e-6, atol=atol)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("groups", "width"), [(1, 96), (6, 16), (3, 32)])
def test_norm_matches_numpy(run_kernel, target: Target, groups: int, width: int, layer: int) -> None:
    x, out = matrix(4, 96, 1, 3.0) + np.float32(0.5), matrix(4, 96, 2)
    weight, bias = matrix(1, width, 3)[0], matrix(1, width, 4)[0]
    args = record(
        Norm, X=address(x), X_STRIDE=384, OUT=address(out), OUT_STRIDE=384, GROUPS=groups, WIDTH=width,
        EPS=1e-5, WEIGHT=address(weight), BIAS=address(bias) if layer else 0, LAYER=layer,
    )  # fmt: skip
    run_kernel(target, "norm", args, TOKENS=4)
    parts = x.astype(np.float64).reshape(4, groups, width)
    if layer:
        parts = parts - parts.mean(-1, keepdims=True)
    expected = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5) * weight + (bias if layer else 0)
    np.testing.assert_allclose(out, expected.reshape(4, 96), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_rotates_pairs_and_leaves_the_rest(run_kernel, target: Target, style: str) -> None:
    heads, dim, half, position = 3, 32, 12, 5
    x = matrix(2, heads * dim, 1)
    before = x.reshape(2, heads, dim).copy()
    angles = np.random.default_rng(2).uniform(-3, 3, (8, half))
    table = aligned(8 * 2 * half, np.float32).reshape(8, 2, half)
    table[:, 0], table[:, 1] = np.cos(angles), np.sin(angles)
    args = record(
        Rope,
        X=address(x),
        X_STRIDE=4 * heads * dim,
        HEADS=heads,
        HEAD_DIM=dim,
        HALF=half,
        TABLE=address(table),
    )
    positions = np.array([position, position + 1])
    run_kernel(target, f"rope/style={style}", args, TOKENS=2, POSITIONS=address(positions))
    after = x.reshape(2, heads, dim)
    first, second = (np.arange(half), np.arange(half) + half)
    if style == "interleaved":
        first, second = 2 * np.arange(half), 2 * np.arange(half) + 1
    for t in range(2):
        turned = (before[t][:, first] + 1j * before[t][:, second]) * np.exp(1j * angles[position + t])
        np.testing.assert_allclose(after[t][:, first], turned.real, atol=1e-6)
        np.testing.assert_allclose(after[t][:, second], turned.imag, atol=1e-6)
    np.testing.assert_array_equal(after[..., 2 * half :], before[..., 2 * half :])

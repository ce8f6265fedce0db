"""The vector primitives on every level of the host against NumPy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels.memory import aligned
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import V16F16, V16F32, V16I32, V64I8
from edgellm.kernels.simd.level import Target

_spec = importlib.util.spec_from_file_location("probe", Path(__file__).with_name("probe.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
probe = _module.probe


@pytest.mark.parametrize("u_max", [15, 127, 255])
def test_dot4_is_exact_also_at_its_extremes(target: Target, u_max: int) -> None:
    def emit(e, u, s, out):
        acc = e.load(out, V16I32, 64)
        e.store(dot4(e, acc, e.load(u, V64I8, 64), e.load(s, V64I8, 64), u_max), out, 64)

    call = probe(target, emit)
    rng = np.random.default_rng(u_max)
    constant = [(a, b) for a in (0, u_max) for b in (-128, -127, 0, 127)]
    edges = [u for u in (0, 1, 127, 128, u_max) if u <= u_max]
    for case in range(80):
        u, s, out = aligned(64, np.uint8), aligned(64, np.int8), aligned(16, np.int32)
        if case < len(constant):
            u[:], s[:] = constant[case]
        elif case < 40:
            u[:], s[:] = rng.choice(edges, 64), rng.choice([-128, -127, -1, 0, 1, 127], 64)
        else:
            u[:], s[:] = rng.integers(0, u_max + 1, 64), rng.integers(-128, 128, 64)
        out[:] = rng.integers(-1000, 1000, 16)
        expected = out + (u.astype(np.int32) * s).reshape(16, 4).sum(1)
        call(u, s, out)
        np.testing.assert_array_equal(out, expected)


def test_half_to_float_is_exact_for_every_finite_half(target: Target) -> None:
    call = probe(target, lambda e, x, y, out: e.store(e.half_to_float(e.load(x, V16F16, 32)), out, 64))
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    for first in range(0, len(every) - 15, 16):
        x, out = aligned(16, np.float16), aligned(16, np.float32)
        x[:] = every[first : first + 16]
        call(x, x, out)
        np.testing.assert_array_equal(out.view(np.uint32), x.astype(np.float32).view(np.uint32))


def test_float_to_half_rounds_as_numpy_does(target: Target) -> None:
    call = probe(target, lambda e, x, y, out: e.store(e.float_to_half(e.load(x, V16F32, 64)), out, 32))
    rng = np.random.default_rng(3)
    ties = (np.arange(2048, dtype=np.float32) + 0.5) * 2.0**-24  # between neighbouring subnormals
    normal_ties = np.float32(1) + (2 * np.arange(64, dtype=np.float32) + 1) * np.float32(2.0**-11)
    edges = np.array([65504, 65519, 65520, 7e4, 6.1e-5, 6e-8, 2.9e-8, 0, -0.0, np.inf], np.float32)
    spread = rng.standard_normal(4096).astype(np.float32) * 10.0 ** rng.integers(-9, 6, 4096)
    values = np.concatenate([ties, normal_ties, edges, spread.astype(np.float32)])
    values = np.concatenate([values, -values])
    values = np.resize(values, -(-len(values) // 16) * 16)
    for first in range(0, len(values), 16):
        x, out = aligned(16, np.float32), aligned(16, np.float16)
        x[:] = values[first : first + 16]
        call(x, x, out)
        with np.errstate(over="ignore"):
            expected = x.astype(np.float16)
        np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))


def test_exp_is_within_two_units_in_the_last_place(target: Target) -> None:
    call = probe(target, lambda e, x, y, out: e.store(e.exp(e.load(x, V16F32, 64)), out, 64))
    values = np.linspace(-86.9, 87.9, 16 * 500, dtype=np.float32)
    for first in range(0, len(values), 16):
        x, out = aligned(16, np.float32), aligned(16, np.float32)
        x[:] = values[first : first + 16]
        call(x, x, out)
        exact = np.exp(x.astype(np.float64))
        assert np.all(np.abs(out - exact) <= 2 * np.spacing(exact.astype(np.float32)))


def test_exp_of_very_negative_numbers_is_zero(target: Target) -> None:
    call = probe(target, lambda e, x, y, out: e.store(e.exp(e.load(x, V16F32, 64)), out, 64))
    x, out = aligned(16, np.float32), aligned(16, np.float32)
    x[:] = np.linspace(-3e38, -88, 16)
    call(x, x, out)
    np.testing.assert_array_equal(out, 0)

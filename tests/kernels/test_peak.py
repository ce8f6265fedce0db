"""The peak kernel computes what it claims to count, on every level, and the rates are those of a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Multiply, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.peak import SLOTS, block, measure
from edgellm.kernels.simd.level import Target, host_levels, host_target
from edgellm.kernels.team import call_kernel

TURNS = 37


def run(target: Target, kind: str, values: np.ndarray, out: np.ndarray) -> None:
    name = f"multiply/kind={kind}"
    args = record(Multiply, ADDRESS=address(values), TURNS=TURNS, OUT=address(out))
    call_kernel(load_kernels([name], target)[name], address(args))


def sides(values: np.ndarray, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of 64 bytes as the kernel uses them: (TURNS, left, lanes) and (right, lanes)."""
    rows = values.reshape(SLOTS + right, -1)
    turns = [(np.arange(left) + left * t) % (SLOTS // left * left) for t in range(TURNS)]
    return rows[np.array(turns)], rows[SLOTS:]


def test_int8_turns_add_up_every_product(target: Target) -> None:
    left, right = block(target, "int8")
    values, out = aligned(64 * (SLOTS + right), np.uint8), aligned(16, np.int32)
    rng = np.random.default_rng(1)
    values[:] = rng.integers(0, 16, values.size)
    values[64 * SLOTS :] = rng.integers(-128, 128, 64 * right, dtype=np.int8).view(np.uint8)
    run(target, "int8", values, out)
    x, y = sides(values, left, right)
    products = np.einsum("tli,ri->i", x.astype(np.int64), y.view(np.int8).astype(np.int64))
    np.testing.assert_array_equal(out, products.reshape(16, 4).sum(1))


def test_tile_turns_add_up_every_product(target: Target) -> None:
    """With emulated tiles, since few machines have others."""
    values, out = aligned(4 * 1024, np.int8), aligned(16, np.int32)
    rng = np.random.default_rng(3)
    values[:] = rng.integers(-128, 128, values.size)
    run(replace(target, emulate_tiles=True), "tiles", values, out)
    left = values[:2048].reshape(2, 16, 64)[:, 0].astype(np.int64)  # the first rows
    right = values[2048:].view(np.uint8).reshape(2, 16, 16, 4).transpose(0, 1, 3, 2).reshape(2, 64, 16)
    np.testing.assert_array_equal(out, TURNS * (left.sum(0) @ right.sum(0, dtype=np.int64)))


def test_float_turns_add_up_every_product(target: Target) -> None:
    left, right = block(target, "float")
    values, out = aligned(16 * (SLOTS + right), np.float32), aligned(16, np.float32)
    values[:] = np.random.default_rng(2).random(values.size, np.float32)
    run(target, "float", values, out)
    x, y = sides(values, left, right)
    np.testing.assert_allclose(out, np.einsum("tli,ri->i", x.astype(np.float64), y), rtol=1e-5)


def test_a_better_level_has_a_higher_peak() -> None:
    """On x86, whatever the machine is doing: AVX2's dot product is several times as wide as plain code's."""
    levels = host_levels()
    if "avx2" not in levels:
        pytest.skip("no AVX2 here")
    rates = [measure(1, host_target(level)) for level in (levels[0], levels[-1])]
    assert rates[1].int8 > 3 * rates[0].int8
    assert rates[0].int8 > 1e7
    assert rates[1].int8 < 1e13


def test_int8_multiplies_faster_than_float_where_it_has_instructions() -> None:
    peak = measure(2)
    assert peak.float32 > 1e7
    if host_target().level in ("avx2", "avx512"):
        assert peak.int8 > 1.3 * peak.float32

"""Ternary matrices whose rows have a single scale: packed without block scales in two bits or in base 3, and
multiplied exactly."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest

from edgellm.executors.native.packing import rows_are_uniform
from edgellm.formats.tensor import Tensor
from edgellm.kernels.layout import GROUP, Base3Layout, align
from edgellm.kernels.memory import aligned
from edgellm.kernels.simd.level import Target, host_levels, host_target
from edgellm.program.ops import Weight
from edgellm.ternary.reference import matmul
from tests.kernels.test_linear import integers_of, linear_q, quantize, random_tensor, store_of

TYPES = ["TQ1_0", "TQ2_0"]
LAYOUTS = [False, True]  # two bits, base 3


@pytest.fixture(scope="session", params=[*host_levels(), "native"])
def target(request: pytest.FixtureRequest) -> Target:
    """The levels, and this processor with all that it has: some of it only base 3 uses."""
    return host_target(None if request.param == "native" else request.param)


def ternary_tensor(type_name: str, trits: np.ndarray, scale: np.ndarray) -> Tensor:
    """scale (n, 1) times trits (n, k), by ggml's own rules."""
    values = (trits * scale).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name])
    return Tensor("w", type_name, trits.shape, np.ascontiguousarray(raw).view(np.uint8))


def product(
    run_kernel,
    target: Target,
    tensor: Tensor,
    integers: np.ndarray,
    planes: int,
    base3: bool = False,
    rounded: bool = False,
) -> tuple[np.ndarray, bool]:
    """W x for activations that are these integers exactly, and whether W was packed with block scales.
    rounded: their rows are given a single scale, not their blocks."""
    tokens, k = integers.shape
    n = tensor.shape[0]
    store = store_of(tensor, target, base3)  # owns the memory
    packed = store[Weight("w")]
    assert not isinstance(packed.form, str)
    x = aligned(tokens * k, np.float32).reshape(tokens, k)
    x[:] = integers
    act, layout = quantize(run_kernel, target, x, planes, packed.zero_shift, rounding=rounded)
    q, scale = integers_of(act, layout, planes)
    np.testing.assert_array_equal(q * np.repeat(scale, 32, axis=1), integers)  # quantisation has lost nothing
    width = align(n, 16)
    out = aligned(align(tokens, GROUP) * width, np.float32).reshape(-1, width)
    linear_q(
        run_kernel, target, packed, act, layout, out, aligned(width, np.float32), planes, rounded=rounded
    )
    np.testing.assert_array_equal(out[:tokens, n:], 0)  # rows that fill the last tile
    assert isinstance(packed.form, Base3Layout) == (base3 and not packed.form.scaled)
    return out[:tokens, :n], packed.form.scaled


def whole_numbers(rng: np.random.Generator, tokens: int, k: int) -> np.ndarray:
    """int8 (tokens, k) whose blocks of 32 all have 127 as their largest magnitude: their scale is 1."""
    x = rng.integers(-127, 128, (tokens, k), dtype=np.int8)
    x[:, ::32] = 127
    return x


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("base3", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 21])
@pytest.mark.parametrize("type_name", TYPES)
def test_products_are_those_of_the_reference(
    run_kernel, target: Target, type_name: str, tokens: int, base3: bool, rounded: bool
) -> None:
    rng = np.random.default_rng(tokens)
    for n, k in ((48, 768), (80, 256), (99, 512), (1, 256)):
        trits = rng.integers(-1, 2, (n, k), dtype=np.int8)
        trits[n // 2] = 0
        trits[n // 3, :256] = 0  # a block without a scale
        x = whole_numbers(rng, tokens, k)
        tensor = ternary_tensor(type_name, trits, np.full((n, 1), 0.25))
        found, scaled = product(run_kernel, target, tensor, x, 1, base3, rounded)
        assert not scaled
        np.testing.assert_array_equal(found, matmul(x, trits) * 0.25)
        if not base3:
            emulating, _ = product(
                run_kernel, replace(target, emulate_tiles=True), tensor, x, 1, False, rounded
            )
            np.testing.assert_array_equal(emulating, found)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("base3", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 6, 11])
def test_bias_and_gate(run_kernel, target: Target, tokens: int, base3: bool, rounded: bool) -> None:
    """With two planes of activations, or one of rounded rows."""
    planes = 1 if rounded else 2
    rng = np.random.default_rng(9)
    n, k = 99, 512
    trits, scale = rng.integers(-1, 2, (n, k), dtype=np.int8), np.full((n, 1), 0.0625)
    store = store_of(ternary_tensor("TQ2_0", trits, scale), target, base3)
    packed, width = store[Weight("w")], align(n, 16)
    x, bias = aligned(tokens * k, np.float32).reshape(tokens, k), aligned(width, np.float32)
    x[:], bias[:n] = rng.standard_normal((tokens, k)), rng.standard_normal(n)
    act, layout = quantize(run_kernel, target, x, planes, packed.zero_shift, rounding=rounded)
    q, steps = integers_of(act, layout, planes)
    exact = (q * np.repeat(steps.astype(np.float64), 32, axis=1)) @ (trits * scale).T + bias[:n]
    for gate in ("", "relu2"):
        out = aligned(align(tokens, GROUP) * width, np.float32).reshape(-1, width)
        before = rng.standard_normal((tokens, n)).astype(np.float32)
        out[:tokens, :n] = before
        linear_q(run_kernel, target, packed, act, layout, out, bias, planes, gate, rounded)
        expected = np.maximum(before, 0) ** 2.0 * exact if gate else exact + before
        np.testing.assert_allclose(out[:tokens, :n], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("base3", LAYOUTS)
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(("trit", "value"), [(-1, 127), (1, 127), (-1, -127), (1, -127)])
def test_the_largest_sums(
    run_kernel, target: Target, type_name: str, trit: int, value: int, base3: bool, rounded: bool
) -> None:
    trits, x = np.full((48, 4096), trit, np.int8), np.full((9, 4096), value, np.int8)
    for tokens in (1, 9):
        tensor = ternary_tensor(type_name, trits, np.ones((48, 1)))
        found, _ = product(run_kernel, target, tensor, x[:tokens], 1, base3, rounded)
        np.testing.assert_array_equal(found, np.full((tokens, 48), 4096 * trit * value))


@pytest.mark.parametrize("type_name", TYPES)
def test_rows_of_several_scales_keep_them(run_kernel, target: Target, type_name: str) -> None:
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (48, 512), dtype=np.int8)
    scale = np.repeat(rng.choice([0.5, 2.0], (48, 2)), 256, axis=1)
    x = whole_numbers(rng, 5, 512)
    found, scaled = product(run_kernel, target, ternary_tensor(type_name, trits, scale), x, 1)
    assert scaled
    np.testing.assert_array_equal(found, x.astype(np.float64) @ (trits * scale).T)


@pytest.mark.parametrize("type_name", TYPES)
def test_uniform_rows_are_told_from_others(type_name: str) -> None:
    trits = np.random.default_rng(2).integers(-1, 2, (3, 768), dtype=np.int8)
    trits[0, :256] = 0
    tensor = ternary_tensor(type_name, trits, np.array([[0.5], [0.25], [1.0]]))
    assert rows_are_uniform(tensor)
    blocks = tensor.data.reshape(3, 3, -1)
    if type_name == "TQ2_0":
        other = blocks.copy()
        other[2, 1, 5] |= 3  # a code that is no trit
        assert not rows_are_uniform(Tensor("w", type_name, (3, 768), other.reshape(3, -1)))
    for change in ("scale", "infinite", "negative", "zero scale"):
        other = blocks.copy()
        half = {"scale": 0.75, "infinite": np.inf, "negative": -0.25, "zero scale": 0.0}[change]
        rows = slice(0, 3) if change == "infinite" else slice(1, 2)
        other[1, rows, -2:] = np.array([half], np.float16).view(np.uint8)
        assert not rows_are_uniform(Tensor("w", type_name, (3, 768), other.reshape(3, -1))), change
    assert not rows_are_uniform(random_tensor(type_name, 4, 768))

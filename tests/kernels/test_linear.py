"""Linear kernels against float64 NumPy, for every packed form and token count."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.executors.native.packing import Packed, kernel_form, linear_kernel
from edgellm.executors.native.weights import WeightStore
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import ModelConfig
from edgellm.formats.tensor import Tensor
from edgellm.kernels.codes import CODE_FORMS
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import (
    GROUP,
    ActLayout,
    Embed,
    LinearF,
    LinearQ,
    Norm,
    Quantize,
    TileLayout,
    align,
    record,
)
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target
from edgellm.program.ops import Weight

BLOCK_TYPES = sorted(CODE_FORMS)
HALF_OFFSETS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64],
}  # fmt: skip


def random_tensor(type_name: str, n: int, k: int, seed: int = 0) -> Tensor:
    """A tensor of random blocks with sane scales, or of random floats."""
    rng = np.random.default_rng(seed)
    if type_name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((n, k)).astype(np.float32)
        raw = {
            "F32": lambda: values.view(np.uint8),
            "F16": lambda: values.astype(np.float16).view(np.uint8),
            "BF16": lambda: (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8),
        }[type_name]()
        return Tensor("w", type_name, (n, k), raw)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    raw = rng.integers(0, 256, (n, k // elements, size), dtype=np.uint8)
    if type_name == "TQ1_0":  # only encodings of five trits occur in files
        trits = rng.integers(0, 3, (n, k // elements, 52, 5))
        value = (trits * [81, 27, 9, 3, 1]).sum(-1)
        raw[..., :52] = (value * 256 + 242) // 243
    if type_name == "TQ2_0":
        pairs = rng.integers(0, 3, (n, k // elements, 64, 4))
        raw[..., :64] = (pairs * [1, 4, 16, 64]).sum(-1)
    for offset in HALF_OFFSETS[type_name]:
        scales = (rng.random((n, k // elements)) * 0.02 + 1e-4).astype(np.float16)
        raw[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return Tensor("w", type_name, (n, k), raw.reshape(n, -1))


def store_of(tensor: Tensor, target: Target, base3: bool = False) -> WeightStore:
    config = ModelConfig("llama", 8, 8, 8, 1, 1, 1, 8, 8, 1e-5)
    checkpoint = Checkpoint(Path("test"), "gguf", config, {"w": tensor})
    store = WeightStore(checkpoint, [Weight("w")], base3=[Weight("w")] * base3)
    store.pack(load_kernels(store.kernels, target), threads=1)
    return store


def bytes_at(where: int, count: int) -> bytes:
    return ctypes.string_at(where, count)


def quantize(
    run_kernel,
    target: Target,
    x: np.ndarray,
    planes: int,
    shift: int = 0,
    norm: np.ndarray | None = None,
    rounding: bool = False,
) -> tuple[np.ndarray, ActLayout]:
    tokens, k = x.shape
    layout = ActLayout(k)
    act = aligned(align(tokens, GROUP) * layout.stride, np.uint8)
    args = record(
        Quantize, X=address(x), X_STRIDE=4 * k, ACT=address(act), ACT_STRIDE=layout.stride,
        BLOCKS=layout.blocks, LOW=layout.low, SCALE=layout.scale, FSUM32=layout.fsum32,
        START32=layout.start32, FSUM16=layout.fsum16, START16=layout.start16, SHIFT=shift,
        NORM=0 if norm is None else address(norm),
    )  # fmt: skip
    options = f"{',rounding=int8' if rounding else ''}{',norm=1' if norm is not None else ''}"
    run_kernel(target, f"quantize/planes={planes}{options}", args, TOKENS=tokens)
    return act.reshape(-1, layout.stride)[:tokens], layout


def integers_of(act: np.ndarray, layout: ActLayout, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """The (tokens, k) integers and (tokens, blocks) scales of quantised rows."""
    high = act[:, : layout.k].view(np.int8).astype(np.int32)
    scale = act[:, layout.scale : layout.fsum32].copy().view(np.float32)
    if planes == 1:
        return high, scale
    return 256 * high + act[:, layout.low : layout.low + layout.k].view(np.int8), scale


@pytest.mark.parametrize("planes", [1, 2])
def test_quantize_rounds_to_nearest_and_keeps_sums(run_kernel, target: Target, planes: int) -> None:
    x = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    x[1, 32:64] = 0
    act, layout = quantize(run_kernel, target, x, planes, shift=3)
    q, scale = integers_of(act, layout, planes)
    blocks = x.reshape(3, 3, 32)
    largest = 127 if planes == 1 else 32512
    np.testing.assert_allclose(scale, np.abs(blocks).max(-1) / largest, rtol=2e-7)
    restored = q.reshape(3, 3, 32) * scale[..., None]
    assert np.all(np.abs(restored - blocks) <= 0.5001 * scale[..., None] + 1e-12)
    start32 = act[:, layout.start32 : layout.fsum16].copy().view(np.int32)
    np.testing.assert_array_equal(start32, -8 * q.reshape(3, 3, 32).sum(-1))
    start16 = act[:, layout.start16 : layout.start16 + 24].copy().view(np.int32)
    sums = q.reshape(3, 6, 16).sum(-1)
    np.testing.assert_array_equal(start16, -8 * sums)
    fsum16 = act[:, layout.fsum16 : layout.start16].copy().view(np.float32)
    np.testing.assert_allclose(fsum16, sums * np.repeat(scale, 2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("layer", [0, 1])
def test_quantize_with_a_norm_is_a_norm_and_then_quantize(
    run_kernel, target: Target, layer: int, tokens: int
) -> None:
    k = 96
    rng = np.random.default_rng(4)
    x, weight, bias, plain, fused = (
        aligned(n * k, np.float32).reshape(n, k) for n in (tokens, 1, 1, tokens, tokens)
    )
    for values in (x, weight, bias):
        values[:] = rng.standard_normal(values.shape)
    fields = {
        "X": address(x), "X_STRIDE": 4 * k, "X_PRIVATE": 1, "OUT_STRIDE": 4 * k, "OUT_PRIVATE": 1,
        "GROUPS": 1, "WIDTH": k, "EPS": 1e-5, "WEIGHT": address(weight), "BIAS": address(bias) * layer,
        "LAYER": layer,
    }  # fmt: skip
    run_kernel(target, "norm", record(Norm, OUT=address(plain), **fields), TOKENS=tokens)
    expected, shape = quantize(run_kernel, target, plain, 2, shift=3)
    norm = record(Norm, OUT=address(fused), **fields)
    found, _ = quantize(run_kernel, target, fused, 2, shift=3, norm=norm)
    # LLVM may add up a row in another order, which moves its values by a few units in the last place.
    np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-6)
    (codes, scales), (codes_before, scales_before) = (integers_of(act, shape, 2) for act in (found, expected))
    np.testing.assert_allclose(codes, codes_before, rtol=0, atol=1)
    np.testing.assert_allclose(scales, scales_before, rtol=1e-5)


def linear_q(
    run_kernel, target: Target, packed: Packed, act: np.ndarray, layout: ActLayout, out: np.ndarray,
    bias: np.ndarray, planes: int, gate: str = "", rounded: bool = False,
) -> None:  # fmt: skip
    """out (tokens, width) float32 += W x + bias, or out = gate(out) * (W x + bias)."""
    assert not isinstance(packed.form, str)
    wide = packed.form.block == 32
    args = record(
        LinearQ, WEIGHT=packed.address, TILE_STRIDE=packed.stride, TILES=-(-packed.n // 16),
        BLOCKS=packed.form.blocks, INPUT=address(act), INPUT_STRIDE=layout.stride, ACT_LOW=layout.low,
        ACT_SCALE=layout.scale, ACT_FSUM=layout.fsum32 if wide else layout.fsum16,
        ACT_START=layout.start32 if wide else layout.start16, OUT=address(out), OUT_STRIDE=out.strides[0],
        BIAS=address(bias), ACCUMULATE=1,
    )  # fmt: skip
    kernel = linear_kernel(packed.form, planes, rounded) + (f",gate={gate}" if gate else "")
    run_kernel(target, kernel, args, TOKENS=len(act))


@pytest.mark.parametrize("tokens", [1, 2, 11])
@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_linear_q_matches_numpy_on_the_same_integers(
    run_kernel, target: Target, type_name: str, tokens: int
) -> None:
    n, k = 40, 512
    tensor = random_tensor(type_name, n, k)
    store = store_of(tensor, target)  # owns the memory
    packed = store[Weight("w")]
    rng = np.random.default_rng(7)
    x = aligned(tokens * k, np.float32).reshape(tokens, k)
    x[:] = rng.standard_normal((tokens, k))
    bias = aligned(align(n, 16), np.float32)
    bias[:n] = rng.standard_normal(n)
    for planes in (1, 2):
        act, layout = quantize(run_kernel, target, x, planes, packed.zero_shift)
        out = aligned(align(tokens, GROUP) * 48, np.float32).reshape(-1, 48)
        before = rng.standard_normal((tokens, n)).astype(np.float32)
        out[:tokens, :n] = before
        linear_q(run_kernel, target, packed, act, layout, out, bias, planes)
        q, scale = integers_of(act, layout, planes)
        values = q * np.repeat(scale.astype(np.float64), 32, axis=1)
        exact = values @ tensor.dequantize().astype(np.float64).T + bias[:n] + before
        magnitude = np.abs(values) @ np.abs(tensor.dequantize()).T.astype(np.float64) + 1
        # float16 rounds the scales that a K-quant has in float32; the others differ by float32 sums only.
        tolerance = 1e-6 if CODE_FORMS[type_name].half_scales else 2.0**-11
        assert np.max(np.abs(out[:tokens, :n] - exact) / magnitude) < tolerance


@pytest.mark.parametrize("tokens", [1, 5, 20])
def test_a_gate_multiplies_what_the_output_held(run_kernel, target: Target, tokens: int) -> None:
    n, k = 40, 96
    tensor = random_tensor("Q4_0", n, k)
    store = store_of(tensor, target)  # owns the memory
    packed = store[Weight("w")]
    rng = np.random.default_rng(3)
    x, bias = aligned(tokens * k, np.float32).reshape(tokens, k), aligned(48, np.float32)
    x[:], bias[:n] = rng.standard_normal((tokens, k)), rng.standard_normal(n)
    act, layout = quantize(run_kernel, target, x, 2, packed.zero_shift)
    plain, gated = (aligned(align(tokens, GROUP) * 48, np.float32).reshape(-1, 48) for _ in range(2))
    gate = rng.standard_normal((tokens, n)).astype(np.float32)
    gated[:tokens, :n] = gate
    linear_q(run_kernel, target, packed, act, layout, plain, bias, 2)
    linear_q(run_kernel, target, packed, act, layout, gated, bias, 2, gate="silu")
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * plain[:tokens, :n]
    np.testing.assert_allclose(gated[:tokens, :n], expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("tokens", [16, 37])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q6_K", "TQ2_0"])
def test_tile_registers_change_no_bit(run_kernel, target: Target, type_name: str, tokens: int) -> None:
    """The matmul for tile registers, which here are emulated, against the one for vectors."""
    n, k = 40, 768 if "K" in type_name or "TQ" in type_name else 288  # 9 blocks: an odd last one
    tensor = random_tensor(type_name, n, k)
    store = store_of(tensor, target)  # owns the memory
    packed = store[Weight("w")]
    rng = np.random.default_rng(11)
    x, bias = aligned(tokens * k, np.float32).reshape(tokens, k), aligned(48, np.float32)
    x[:], bias[:n] = rng.standard_normal((tokens, k)), rng.standard_normal(n)
    before = rng.standard_normal((align(tokens, GROUP), 48)).astype(np.float32)
    for planes in (1, 2):
        act, layout = quantize(run_kernel, target, x, planes, packed.zero_shift)
        found = []
        for emulate in (False, True):
            out = aligned(before.size, np.float32).reshape(before.shape)
            out[:] = before
            linear_q(
                run_kernel, replace(target, emulate_tiles=emulate), packed, act, layout, out, bias, planes
            )
            found.append(out[:tokens].copy())
        assert not np.array_equal(found[0], before[:tokens])
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("k", [64, 70])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_linear_f_matches_numpy(run_kernel, target: Target, type_name: str, k: int, tokens: int) -> None:
    n = 21
    tensor = random_tensor(type_name, n, k)
    store = store_of(tensor, target)  # owns the memory
    packed = store[Weight("w")]
    stride = align(4 * k)
    x = aligned(align(tokens, GROUP) * stride // 4, np.float32).reshape(-1, stride // 4)
    x[:tokens, :k] = np.random.default_rng(2).standard_normal((tokens, k))
    out = aligned(align(tokens, GROUP) * 32, np.float32).reshape(-1, 32)
    args = record(
        LinearF, WEIGHT=packed.address, TILE_STRIDE=packed.stride, TILES=packed.tiles, INPUTS=k,
        INPUT=address(x), INPUT_STRIDE=stride, OUT=address(out), OUT_STRIDE=128,
    )  # fmt: skip
    run_kernel(target, f"linear_f/{kernel_form(packed.form)}", args, TOKENS=tokens)
    exact = x[:tokens, :k].astype(np.float64) @ tensor.dequantize().astype(np.float64).T
    np.testing.assert_allclose(out[:tokens, :n], exact, atol=2e-5)
    assert not out[:tokens, n:].any()


@pytest.mark.parametrize("type_name", [*BLOCK_TYPES, "F32", "F16", "BF16"])
def test_embed_returns_the_rows_of_the_table(run_kernel, target: Target, type_name: str) -> None:
    tensor = random_tensor(type_name, 37, 512, seed=5)
    store = store_of(tensor, target)  # owns the memory
    packed = store[Weight("w")]
    ids = np.array([0, 36, 17, 17, 5], np.int64)
    out = aligned(5 * 512, np.float32).reshape(5, 512)
    fields = {"WEIGHT": packed.address, "TILE_STRIDE": packed.stride, "OUT": address(out), "OUT_STRIDE": 2048}
    if isinstance(packed.form, TileLayout):
        kernel = f"embed/kind=q,{kernel_form(packed.form)}"
        fields |= {"COUNT": packed.form.blocks, "ZERO_SHIFT": packed.zero_shift}
    else:
        kernel = f"embed/{kernel_form(packed.form)}"
        fields |= {"COUNT": 3, "CHUNK": 200, "INPUTS": 512}
    run_kernel(target, kernel, record(Embed, FACTOR=2.0, **fields), TOKENS=5, IDS=address(ids))
    expected = 2 * tensor.dequantize(ids)
    largest = np.abs(tensor.dequantize()).max()
    exact = not isinstance(packed.form, TileLayout) or CODE_FORMS[type_name].half_scales
    np.testing.assert_allclose(out, expected, atol=largest * (3e-7 if exact else 2.0**-10), rtol=0)


def test_rows_of_a_weight_pack_as_that_slice(target: Target) -> None:
    tensor = random_tensor("Q4_0", 64, 64)
    config = ModelConfig("llama", 8, 8, 8, 1, 1, 1, 8, 8, 1e-5)
    weight = Weight("w", (16, 48))
    store = WeightStore(Checkpoint(Path("t"), "gguf", config, {"w": tensor}), [weight])
    store.pack(load_kernels(store.kernels, target), threads=1)
    whole = store_of(tensor, target)
    packed = store[weight]
    assert (packed.n, packed.tiles) == (32, 2)
    expected = bytes_at(whole[Weight("w")].address + packed.stride, packed.nbytes)
    assert bytes_at(packed.address, packed.nbytes) == expected

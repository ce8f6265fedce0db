"""neuron_rows and neuron_columns against NumPy, in every codec, on every level."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.formats.slots import arrange, decode, pack_trits
from edgellm.kernels.layout import ActLayout, NeuronColumns, NeuronRows, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.neuron_codes import UNIT
from tests.kernels.conftest import RunKernel

NEURONS, HIDDEN, TOKENS = 64, 2240, 3
CODECS = ("q4_0", "q8_0", "t2")


def vectors(rng: np.random.Generator, codec: str, role: str, n: int) -> np.ndarray:
    """n random vectors of HIDDEN weights, uint8 (n, bytes)."""
    if codec == "t2":
        data = pack_trits(rng.integers(0, 3, (n, HIDDEN)).astype(np.uint8))
        if role == "down":
            return data
        scales = rng.uniform(0.01, 0.1, (n, 1)).astype("<f4").view(np.uint8)
        return np.concatenate([data, scales], axis=1)
    from gguf import GGMLQuantizationType, quants

    values = rng.standard_normal((n, HIDDEN)).astype(np.float32)
    return arrange(quants.quantize(values, GGMLQuantizationType[codec.upper()]), codec)  # type: ignore[arg-type]


def listed(memory: np.ndarray, neurons: np.ndarray) -> np.ndarray:
    """The list of these neurons, each in its row of `memory`."""
    pairs = [[int(n), address(memory) + int(n) * memory.shape[1]] for n in neurons]
    return np.array([len(neurons), *(x for pair in pairs for x in pair)], np.int64)


def rounded_rows(
    rng: np.random.Generator, k: int, planes: int = 1
) -> tuple[np.ndarray, np.ndarray, ActLayout]:
    """(rows of an ActLayout, their values, the layout): one plane with a scale to a row, or two with one to
    every 32 inputs."""
    act = ActLayout(k)
    rows = aligned(TOKENS * act.stride, np.uint8).reshape(TOKENS, -1)
    most = 127 if planes == 1 else 32512
    codes = rng.integers(-most, most + 1, (TOKENS, k))
    high = codes if planes == 1 else (codes + 128) >> 8
    rows[:, :k] = high.astype(np.int8).view(np.uint8)
    if planes == 2:
        rows[:, act.low : act.low + k] = (codes - 256 * high).astype(np.int8).view(np.uint8)
    scales = rng.uniform(0.01, 1, (TOKENS, k // 32)).astype(np.float32) / most
    if planes == 1:
        scales[:] = scales[:, :1]
    rows[:, act.scale : act.scale + k // 8] = scales.view(np.uint8)
    sums = scales * codes.reshape(TOKENS, -1, 32).sum(2).astype(np.float32)
    rows[:, act.fsum32 : act.fsum32 + k // 8] = sums.astype(np.float32).view(np.uint8)
    return rows, codes * np.repeat(scales.astype(np.float64), 32, axis=1), act


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_rows_of_some_neurons(target, run_kernel: RunKernel, codec: str, rounded: bool, tokens: int) -> None:
    rng = np.random.default_rng(1)
    data = vectors(rng, codec, "up", NEURONS)
    memory = aligned(NEURONS * data.shape[1], np.uint8).reshape(NEURONS, -1)
    memory[:] = data
    some = np.array([0, 3, 4, 17, 36])
    act = aligned(TOKENS * NEURONS, np.float32).reshape(TOKENS, -1)
    act[:] = rng.standard_normal(act.shape)
    act[0, 3] = 0
    before = act.copy()
    rows, values, layout = rounded_rows(rng, HIDDEN, 1 if rounded else 2)
    bias = rng.standard_normal(NEURONS).astype(np.float32)
    which = listed(memory, some)
    counter = aligned(1, np.int64)
    args = record(
        NeuronRows, NEXT=address(counter), LIST=address(which),
        INPUT=address(rows), INPUT_STRIDE=layout.stride, ACT_LOW=layout.low,
        ACT_SCALE=layout.scale, ACT_FSUM=layout.fsum32, UNITS=HIDDEN // UNIT,
        WEIGHT_SCALE=data.shape[1] - 4, ACT=address(act), ACT_STRIDE=4 * NEURONS, BIAS=address(bias),
        FACTOR=1.0,
    )  # fmt: skip
    kernel = f"neuron_rows/codec={codec},planes={1 if rounded else 2}" + (",rounded=1" if rounded else "")
    run_kernel(target, kernel, args, TOKENS=tokens)
    weights = decode(data, "up", codec).astype(np.float64)  # type: ignore[arg-type]
    expected = before.astype(np.float64)
    expected[:tokens, some] *= values[:tokens] @ weights[some].T + bias[some]
    np.testing.assert_allclose(act, expected, rtol=2e-4, atol=2e-3)
    assert (act[:, 1] == before[:, 1]).all()
    assert act[0, 3] == 0


def test_gates_of_predicted_neurons(target, run_kernel: RunKernel) -> None:
    rng = np.random.default_rng(2)
    data = vectors(rng, "q8_0", "gate", NEURONS)
    memory = aligned(data.size, np.uint8).reshape(data.shape)
    memory[:] = data
    act = aligned(NEURONS, np.float32)
    act[:] = 1
    act[4] = 0  # not predicted for this token
    rows, values, layout = rounded_rows(rng, HIDDEN, 2)
    some = np.arange(0, NEURONS, 2)
    which = listed(memory, some)
    counter = aligned(1, np.int64)
    args = record(
        NeuronRows, NEXT=address(counter), LIST=address(which),
        INPUT=address(rows), INPUT_STRIDE=layout.stride, ACT_LOW=layout.low,
        ACT_SCALE=layout.scale, ACT_FSUM=layout.fsum32, UNITS=HIDDEN // UNIT, ACT=address(act),
        ACT_STRIDE=4 * NEURONS, FACTOR=1.0,
    )  # fmt: skip
    run_kernel(target, "neuron_rows/codec=q8_0,planes=2,activation=relu", args)
    expected = np.ones(NEURONS)
    expected[some] = np.maximum(decode(data, "gate", "q8_0")[some] @ values[0], 0)
    expected[4] = 0
    np.testing.assert_allclose(act, expected, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_columns_of_some_neurons(
    target, run_kernel: RunKernel, codec: str, rounded: bool, tokens: int
) -> None:
    rng = np.random.default_rng(3)
    data = vectors(rng, codec, "down", NEURONS)
    memory = aligned(data.size, np.uint8).reshape(data.shape)
    memory[:] = data
    some = np.array([1, 2, 30, 36])
    hidden = aligned(TOKENS * NEURONS, np.float32).reshape(TOKENS, -1)
    hidden[:] = rng.standard_normal(hidden.shape)
    hidden[0, 2] = 0
    values, rows, row, scale_at = hidden.astype(np.float64), hidden.view(np.uint8), 4 * NEURONS, 0
    if rounded:
        rows, values, layout = rounded_rows(rng, NEURONS)
        row, scale_at = layout.stride, layout.scale
    out = aligned(TOKENS * HIDDEN, np.float32).reshape(TOKENS, -1)
    out[:] = rng.standard_normal(out.shape)
    before = out.copy()
    bias, scales = (rng.uniform(0.1, 1, HIDDEN).astype(np.float32) for _ in range(2))
    which = listed(memory, some)
    counter = aligned(1, np.int64)
    args = record(
        NeuronColumns, NEXT=address(counter), LIST=address(which), HIDDEN=address(rows), HIDDEN_STRIDE=row,
        HIDDEN_SCALE=scale_at,
        UNITS=HIDDEN // UNIT, ROW_SCALES=address(scales), OUT=address(out), OUT_STRIDE=4 * HIDDEN,
        BIAS=address(bias), ACCUMULATE=1, FACTOR=1.0,
    )  # fmt: skip
    kernel = f"neuron_columns/codec={codec}" + (",rounded=1" if rounded else "")
    run_kernel(target, kernel, args, TOKENS=tokens)
    columns = decode(data, "down", codec).astype(np.float64)  # type: ignore[arg-type]
    sums = values[:tokens][:, some] @ columns[some]
    expected = before.astype(np.float64)
    expected[:tokens] += sums * (scales if codec == "t2" else 1) + bias
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-3)
    if rounded and codec == "t2":  # sums of whole numbers, exactly
        exact = rows.view(np.int8)[0, some].astype(np.float32) @ columns[some].astype(np.float32)
        scale = rows[0, scale_at : scale_at + 4].view(np.float32)
        alone = np.float64(exact * scale) * scales + np.float64(before[0] + bias)
        assert (out[0] == alone.astype(np.float32)).mean() > (0.999 if target.level != "generic" else 0.5)


def test_the_order_of_the_list_decides_and_not_the_place(target, run_kernel: RunKernel) -> None:
    rng = np.random.default_rng(4)
    data = vectors(rng, "q4_0", "down", NEURONS)
    results = []
    for place in (np.arange(NEURONS), rng.permutation(NEURONS)):
        memory = aligned(data.size, np.uint8).reshape(data.shape)
        memory[place] = data
        hidden = np.linspace(-1, 1, NEURONS, dtype=np.float32)
        out = aligned(HIDDEN, np.float32)
        pairs = [[n, address(memory) + int(place[n]) * data.shape[1]] for n in range(NEURONS)]
        which = np.array([NEURONS, *np.ravel(pairs)], np.int64)
        counter = aligned(1, np.int64)
        args = record(
            NeuronColumns, NEXT=address(counter), LIST=address(which), HIDDEN=address(hidden),
            HIDDEN_STRIDE=4 * NEURONS, UNITS=HIDDEN // UNIT, OUT=address(out), OUT_STRIDE=4 * HIDDEN,
            FACTOR=1.0,
        )  # fmt: skip
        run_kernel(target, "neuron_columns/codec=q4_0", args)
        results.append(out)
    assert (results[0] == results[1]).all()

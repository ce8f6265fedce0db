"""Each op of the reference executor against its formula, written out in scalar Python."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.executors.reference import KvCache, State, Weights, activate, run_op
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import ModelConfig
from edgellm.formats.tensor import Tensor
from edgellm.program import KvSlot
from edgellm.program.ops import (
    Activation,
    Add,
    Attend,
    Embed,
    Ffn,
    KvAppend,
    Linear,
    Logits,
    Norm,
    Rope,
    RopeStyle,
    Scale,
    Softcap,
    Weight,
)

T, WIDTH, NEURONS, VOCAB = 3, 8, 12, 10
RNG = np.random.default_rng(5)
ARRAYS = {
    "table": RNG.normal(size=(VOCAB, WIDTH)),
    "square": RNG.normal(size=(WIDTH, WIDTH)),
    "norm": RNG.normal(size=WIDTH),
    "head_norm": RNG.normal(size=4),
    "bias": RNG.normal(size=WIDTH),
    "up": RNG.normal(size=(NEURONS, WIDTH)),
    "gate": RNG.normal(size=(NEURONS, WIDTH)),
    "down": RNG.normal(size=(WIDTH, NEURONS)),
    "up_bias": RNG.normal(size=NEURONS),
    "sub_norm": RNG.normal(size=NEURONS),
}


@pytest.fixture
def state() -> State:
    """Three tokens at positions 4 to 6, with random buffers x and y."""
    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in ARRAYS.items()}
    tensors = {name: Tensor(name, "F32", a.shape, a.view(np.uint8)) for name, a in arrays.items()}
    checkpoint = Checkpoint(
        Path("x"), "gguf", ModelConfig("llama", 32, VOCAB, 8, 1, 2, 1, 4, 12, 1e-5), tensors
    )
    rng = np.random.default_rng(3)
    buffers = {name: rng.normal(size=(T, WIDTH)).astype(np.float32) for name in ("x", "y")}
    return State(Weights(checkpoint), np.array([7, 0, 9]), np.array([4, 5, 6]), buffers=buffers)


def close(actual: np.ndarray, expected: object) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=2e-5, atol=2e-6)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(float(p) * float(q) for p, q in zip(a, b, strict=True))


def test_embed_looks_up_tokens(state: State) -> None:
    run_op(Embed("out", Weight("table"), scale=1.5), state)
    close(state.buffers["out"], [1.5 * ARRAYS["table"][t] for t in (7, 0, 9)])


def test_embed_looks_up_positions(state: State) -> None:
    run_op(Embed("out", Weight("table"), index="position", offset=2), state)
    close(state.buffers["out"], [ARRAYS["table"][p] for p in (6, 7, 8)])


def test_rms_norm(state: State) -> None:
    run_op(Norm("x", "out", WIDTH, 0.1, Weight("norm"), weight_offset=1.0), state)
    for row, out in zip(state.buffers["x"], state.buffers["out"], strict=True):
        root = math.sqrt(dot(row, row) / WIDTH + 0.1)
        close(out, [float(v) / root * (w + 1.0) for v, w in zip(row, ARRAYS["norm"], strict=True)])


def test_rms_norm_of_each_head_in_place(state: State) -> None:
    x = state.buffers["x"].copy()
    run_op(Norm("x", "x", 4, 1e-6, Weight("head_norm")), state)
    for row, out in zip(x, state.buffers["x"], strict=True):
        for h in (slice(0, 4), slice(4, 8)):
            root = math.sqrt(dot(row[h], row[h]) / 4 + 1e-6)
            close(out[h], [float(v) / root * w for v, w in zip(row[h], ARRAYS["head_norm"], strict=True)])


def test_layer_norm(state: State) -> None:
    run_op(Norm("x", "out", WIDTH, 0.1, Weight("norm"), Weight("bias"), kind="layer"), state)
    for row, out in zip(state.buffers["x"], state.buffers["out"], strict=True):
        mean = math.fsum(map(float, row)) / WIDTH
        root = math.sqrt(math.fsum((float(v) - mean) ** 2 for v in row) / WIDTH + 0.1)
        weights = zip(row, ARRAYS["norm"], ARRAYS["bias"], strict=True)
        close(out, [(float(v) - mean) / root * w + b for v, w, b in weights])


def test_layer_norm_without_parameters(state: State) -> None:
    run_op(Norm("x", "out", WIDTH, 0.0, kind="layer"), state)
    np.testing.assert_allclose(state.buffers["out"].mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(state.buffers["out"].std(-1), 1, atol=1e-5)


def test_linear_with_bias_rows_and_scale(state: State) -> None:
    run_op(Linear("x", "out", Weight("square", (2, 5), 0.5), Weight("bias", (2, 5))), state)
    for row, out in zip(state.buffers["x"], state.buffers["out"], strict=True):
        close(out, [0.5 * dot(row, ARRAYS["square"][i]) + ARRAYS["bias"][i] for i in (2, 3, 4)])


def test_logits_of_the_last_token_or_of_all(state: State) -> None:
    expected = [[dot(row, w) for w in ARRAYS["table"]] for row in state.buffers["x"]]
    run_op(Logits("x", "logits", Weight("table")), state)
    close(state.buffers["logits"], expected)
    run_op(Logits("x", "logits", Weight("table")), replace(state, all_logits=False))
    close(state.buffers["logits"], expected[-1:])


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_rotates_pairs_as_complex_numbers(state: State, style: RopeStyle) -> None:
    """6 of the 8 dimensions of one head; the last two stay."""
    x = state.buffers["x"].copy()
    inv_freq = np.array([1.0, 0.3, 0.02], np.float32)
    run_op(Rope("x", 1, 8, inv_freq, style, magnitude=1.5), state)
    for row, out, position in zip(x, state.buffers["x"], (4, 5, 6), strict=True):
        for i, frequency in enumerate(inv_freq):
            a, b = (i, i + 3) if style == "half" else (2 * i, 2 * i + 1)
            angle = position * float(frequency)
            turned = complex(row[a], row[b]) * 1.5 * complex(math.cos(angle), math.sin(angle))
            close(out[[a, b]], [turned.real, turned.imag])
        assert (out[6:] == row[6:]).all()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 0.7), (1, 2.0)])
def test_attend(state: State, window: int | None, softcap: float | None) -> None:
    """Two query heads on one key-value head, with four positions already in the cache."""
    cache = KvCache(KvSlot(1, 4))
    k, v = np.random.default_rng(9).normal(size=(2, 7, 4)).astype(np.float32)
    cache.write(np.arange(4), k[:4, None], v[:4, None])
    state.caches.append(cache)
    state.buffers |= {"k": k[4:], "v": v[4:]}
    run_op(KvAppend("k", "v", 0, 1, 4), state)
    run_op(Attend("x", "out", 0, 2, 1, 4, 0.6, window, softcap), state)
    for row, out, position in zip(state.buffers["x"], state.buffers["out"], (4, 5, 6), strict=True):
        for head in (slice(0, 4), slice(4, 8)):
            seen = [p for p in range(7) if p <= position and (window is None or p > position - window)]
            scores = [0.6 * dot(row[head], k[p]) for p in seen]
            if softcap is not None:
                scores = [softcap * math.tanh(s / softcap) for s in scores]
            total = math.fsum(map(math.exp, scores))
            weighted = [math.exp(s) / total * v[p].astype(float) for s, p in zip(scores, seen, strict=True)]
            close(out[head], np.sum(weighted, axis=0))


def test_kv_append_overwrites_after_a_rewind(state: State) -> None:
    state.caches.append(KvCache(KvSlot(1, 8)))
    run_op(KvAppend("x", "y", 0, 1, 8), state)
    run_op(KvAppend("y", "x", 0, 1, 8), state)
    keys, values = state.caches[0].read(7)
    close(keys[4:, 0], state.buffers["y"])
    close(values[4:, 0], state.buffers["x"])


ACTIVATIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x if x > 0 else 0.0,
    "relu2": lambda x: x * x if x > 0 else 0.0,
}


@pytest.mark.parametrize(("activation", "threshold"), [*((name, 0.0) for name in ACTIVATIONS), ("relu", 0.4)])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_ffn(state: State, activation: Activation, gated: bool, normed: bool, threshold: float) -> None:
    def act(x: float) -> float:
        y = ACTIVATIONS[activation](x)
        return 0.0 if 0 < y <= threshold else y

    op = Ffn("x", "out", Weight("up"), Weight("down"), NEURONS, activation, down_bias=Weight("bias"))
    op = replace(op, threshold=threshold)
    if gated:
        op = replace(op, gate=Weight("gate"))
    else:
        op = replace(op, up_bias=Weight("up_bias"))
    if normed:
        op = replace(op, sub_norm=Weight("sub_norm"), sub_norm_eps=0.1)
    run_op(op, state)
    for row, out in zip(state.buffers["x"], state.buffers["out"], strict=True):
        if gated:
            z = [act(dot(row, ARRAYS["gate"][i])) * dot(row, ARRAYS["up"][i]) for i in range(NEURONS)]
        else:
            z = [act(dot(row, ARRAYS["up"][i]) + ARRAYS["up_bias"][i]) for i in range(NEURONS)]
        if normed:
            root = math.sqrt(math.fsum(a * a for a in z) / NEURONS + 0.1)
            z = [a / root * w for a, w in zip(z, ARRAYS["sub_norm"], strict=True)]
        close(out, [dot(ARRAYS["down"][i], np.array(z)) + ARRAYS["bias"][i] for i in range(WIDTH)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_finite_far_out(activation: Activation) -> None:
    out = activate(np.array([-1e4, 1e4], np.float32), activation)
    assert out.tolist() == [0, 1e8 if activation == "relu2" else 1e4]


def test_add_scale_softcap(state: State) -> None:
    x, y = state.buffers["x"].copy(), state.buffers["y"].copy()
    run_op(Add("x", "y", "x"), state)
    run_op(Scale("x", "s", 0.3), state)
    run_op(Softcap("s", "c", 0.4), state)
    close(state.buffers["x"], x + y)
    close(state.buffers["c"], [[0.4 * math.tanh(0.3 * float(v) / 0.4) for v in row] for row in x + y])

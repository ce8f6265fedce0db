"""One layer: its weights, and what it makes of the sampled tokens.

How the rates are set. The first 32 dimensions of the residual stream, one block of Q4_0, are constant: every
embedding holds the same value there, and no layer adds to them, as the first 32 rows of attn_output and
ffn_down are 0. So what a row of ffn_gate has in its first block is a bias. The RMS norm divides it and the
rest of the product by the same number: the neuron fires when a sum of many random terms, about normal,
exceeds a threshold, and the threshold is put where that happens at the wanted rate.

How successive tokens come to resemble each other. The first blocks of attn_q and attn_k are biases as well.
They give every query and every key the same vector, which RoPE turns with the position, so that the score
falls with the distance and attention is an average over the last few tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgellm.executors.reference import softmax
from tools.random_model.shapes import Shape
from tools.synthetic.blocks import BLOCK, clear, fill_first, lengths, random_blocks, times
from tools.synthetic.law import firing_rates, mean_square, thresholds

EPS = 1e-5  # of the RMS norms
CONSTANT = 1.0  # the first 32 dimensions; the others of an embedding have a deviation of 1
RECENCY = 12.0  # score of a token with itself, from the biases alone
# Radians a token of the pairs with a bias: the token three back counts 0.4 times as much as the current one.
SLOWEST, FASTEST = 0.03, 0.3
CONTENT = 0.3  # deviation of queries and keys around their biases
# Deviation of what is added to the residual stream by the attention of the first layer and of later ones, if
# it saw one token alone, and by an FFN. The first mixes the tokens, the others keep them so: in every layer
# a tenth of the stream's variance is shared with the token before. Measured with llama-1.1b.
FIRST_ATTENTION, ATTENTION, FFN = 0.75, 0.15, 0.2


@dataclass(frozen=True)
class Layer:
    """matrices: name -> blocks, uint8 (rows, columns / 32, 18). x: the residual stream behind the layer,
    float32 (T, hidden). fired: which neurons did, bool (T, ffn)."""

    matrices: dict[str, np.ndarray]
    x: np.ndarray
    fired: np.ndarray


def make_embeddings(shape: Shape, seed: int) -> np.ndarray:
    """The blocks of token_embd."""
    blocks = random_blocks(np.random.default_rng([seed, 0]), shape.vocab, shape.hidden, 1.0)
    fill_first(blocks, CONSTANT)
    return blocks


def make_output(shape: Shape, seed: int) -> np.ndarray:
    """The blocks of output. The end of the text, token 0, is never the likeliest: its logit is 0."""
    blocks = random_blocks(np.random.default_rng([seed, 1]), shape.vocab, shape.hidden, shape.hidden**-0.5)
    clear(blocks[:, :1])
    clear(blocks[:1])
    return blocks


def make_layer(shape: Shape, layer: int, seed: int, active: float, x: np.ndarray, setting: int) -> Layer:
    """Make layer number `layer` and run it on the residual stream x, float32 (T, hidden).

    active: share of the neurons that shall fire for a token. The first `setting` tokens give the scale of
    the biases, a number that is rounded, so that it does not depend on the order of a BLAS's sums.
    """
    rng = np.random.default_rng([seed, 2, layer])
    attention, x = _attention(shape, rng, FIRST_ATTENTION if layer == 0 else ATTENTION, x, setting)
    ffn, x, fired = _ffn(shape, rng, active, x, setting)
    return Layer(attention | ffn, x, fired)


def _attention(
    shape: Shape, rng: np.random.Generator, size: float, x: np.ndarray, setting: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The four matrices, and x with what attention adds to it."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    q, k = (random_blocks(rng, rows, hidden, CONTENT * hidden**-0.5) for rows in (queries, keys))
    biased = _biased_rows(shape)
    bias = math.sqrt(RECENCY * math.sqrt(shape.head_dim) / biased.sum()) * biased  # (head_dim,)
    for blocks in (q, k):
        each = np.tile(bias, len(blocks) // shape.head_dim)
        fill_first(blocks, each * _rms(_rest(x[:setting]), hidden) / (BLOCK * CONSTANT))
    v = random_blocks(rng, keys, hidden, hidden**-0.5)
    clear(v[:, :1])
    output = random_blocks(rng, hidden, queries, size * queries**-0.5)
    clear(output[:BLOCK])
    h = normed(x)
    x = x + times(attend(shape, times(h, q), times(h, k), times(h, v)), output)
    return {"attn_q": q, "attn_k": k, "attn_v": v, "attn_output": output}, x


def _ffn(
    shape: Shape, rng: np.random.Generator, active: float, x: np.ndarray, setting: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The three matrices, x with what the FFN adds to it, and who fired."""
    hidden, neurons = shape.hidden, shape.ffn
    rest = _rest(x[:setting])
    z = rng.permutation(thresholds(firing_rates(neurons, active)))
    gate = random_blocks(rng, neurons, hidden, hidden**-0.5)
    fill_first(gate, -z * lengths(gate) * rest / (BLOCK * CONSTANT))
    up = random_blocks(rng, neurons, hidden, hidden**-0.5)
    clear(up[:, :1])
    # gate and up have a deviation of rest / rms each
    product = (rest / _rms(rest, hidden)) ** 2 * math.sqrt(neurons * mean_square(z))
    down = random_blocks(rng, hidden, neurons, FFN / product)
    clear(down[:BLOCK])
    h = normed(x)
    activation = np.maximum(times(h, gate), 0)  # (T, neurons)
    fired = activation > 0
    activation *= times(h, up)
    return {"ffn_gate": gate, "ffn_up": up, "ffn_down": down}, x + times(activation, down), fired


def _biased_rows(shape: Shape) -> np.ndarray:
    """Rows of a head that have a bias, 0 or 1, (head_dim,): the first of a pair that turns slowly."""
    speed = shape.rope_base ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
    rows = np.zeros(shape.head_dim)
    rows[::2] = (speed > SLOWEST) & (speed < FASTEST)
    return rows


def _rest(x: np.ndarray) -> float:
    """Root mean square of the dimensions of x that are not constant, rounded."""
    return round(float(np.sqrt(np.mean(np.square(x[:, BLOCK:], dtype=np.float64)))), 3)


def _rms(rest: float, hidden: int) -> float:
    """Root mean square of all dimensions."""
    return math.sqrt((BLOCK * CONSTANT**2 + (hidden - BLOCK) * rest**2) / hidden)


def normed(x: np.ndarray) -> np.ndarray:
    """RMS norm with weights of 1, (T, hidden)."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(EPS))


def attend(shape: Shape, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention from position 0 on: float32 (T, heads * head_dim)."""
    count = len(q)
    q = rotated(q.reshape(count, shape.heads, -1), shape.rope_base)
    k = rotated(k.reshape(count, shape.kv_heads, -1), shape.rope_base)
    v = v.reshape(count, shape.kv_heads, -1)
    future = np.triu(np.full((count, count), -np.inf, np.float32), 1)
    out = np.empty_like(q)
    for head in range(shape.heads):
        of = head // (shape.heads // shape.kv_heads)
        scores = np.float32(shape.head_dim**-0.5) * (q[:, head] @ k[:, of].T)
        out[:, head] = softmax(scores + future) @ v[:, of]
    return out.reshape(count, -1)


def rotated(x: np.ndarray, base: float) -> np.ndarray:
    """RoPE of x, float32 (T, heads, head_dim), on pairs of neighbours as complex numbers."""
    speed = base ** -(np.arange(0, x.shape[-1], 2) / x.shape[-1])
    turn = np.exp(1j * np.arange(len(x))[:, None, None] * speed).astype(np.complex64)
    return (x.view(np.complex64) * turn).view(np.float32)

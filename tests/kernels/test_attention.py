"""The KV cache and attention against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels.layout import Append, Attend, Sequence, record, scratch_bytes
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target

CONTEXT = 96


def softmax_attention(q, k, v, heads, kv_heads, scale, window, softcap, position):  # type: ignore[no-untyped-def]
    """q: (T, heads, d); k, v: (positions, kv_heads, d). The textbook formula, in float64."""
    out = np.zeros(q.shape)
    for t in range(len(q)):
        end = position + t + 1
        first = max(0, end - window) if window else 0
        for h in range(heads):
            g = h // (heads // kv_heads)
            s = k[first:end, g].astype(np.float64) @ q[t, h] * scale
            if softcap:
                s = softcap * np.tanh(s / softcap)
            p = np.exp(s - s.max())
            out[t, h] = p @ v[first:end, g].astype(np.float64) / p.sum()
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window", "softcap"),
    [
        (4, 2, 64, None, None),
        (3, 3, 16, None, None),
        (6, 2, 24, 20, None),
        (4, 1, 80, None, 30.0),
        (2, 2, 48, 1, 5.0),
    ],
)
def test_attention_over_several_calls(
    run_kernel, target: Target, heads: int, kv_heads: int, dim: int, window: int | None, softcap: float | None
) -> None:
    rng = np.random.default_rng(dim)
    width = -(-dim // 16) * 16
    before = 4 * kv_heads * width  # a slot in front, so that the offset counts
    cache = aligned(CONTEXT * 2 * before, np.uint8)
    scratch = aligned(scratch_bytes(CONTEXT, dim), np.uint8)
    keys, values = np.zeros((0, kv_heads, dim), np.float16), np.zeros((0, kv_heads, dim), np.float16)
    position = 0
    for tokens in (1, 17, 1, 6, 33, 1, 4):
        q = aligned((tokens + 8) * heads * dim + 16, np.float32)
        k, v = (aligned((tokens + 8) * kv_heads * dim + 16, np.float32) for _ in range(2))
        for array in (q, k, v):
            array[:] = rng.standard_normal(array.size)
        out = aligned((tokens + 8) * heads * dim + 16, np.float32)
        sequence = record(Sequence, ROWS=tokens, POSITION=position, KV=address(cache), CONTEXT=CONTEXT)
        state = {
            "TOKENS": tokens, "SEQUENCES": 1, "SEQUENCE_TABLE": address(sequence),
            "SCRATCH": address(scratch), "SCRATCH_BYTES": scratch.nbytes,
        }  # fmt: skip
        append = record(
            Append, K=address(k), V=address(v), K_STRIDE=4 * kv_heads * dim, V_STRIDE=4 * kv_heads * dim,
            KV_HEADS=kv_heads, HEAD_DIM=dim, KV_BEFORE=before,
        )  # fmt: skip
        run_kernel(target, "attention/part=append", append, **state)
        attend = record(
            Attend, Q=address(q), Q_STRIDE=4 * heads * dim, OUT=address(out), OUT_STRIDE=4 * heads * dim,
            HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=dim, KV_BEFORE=before, SCALE=dim**-0.5,
            WINDOW=window or 0, SOFTCAP=softcap or 0.0,
        )  # fmt: skip
        run_kernel(target, "attention/part=attend", attend, **state)
        new = (a[: tokens * kv_heads * dim].reshape(tokens, kv_heads, dim).astype(np.float16) for a in (k, v))
        keys, values = (np.concatenate(pair) for pair in zip((keys, values), new, strict=True))
        queries = q[: tokens * heads * dim].reshape(tokens, heads, dim)
        expected = softmax_attention(
            queries, keys, values, heads, kv_heads, dim**-0.5, window, softcap, position
        )
        result = out[: tokens * heads * dim].reshape(tokens, heads, dim)
        np.testing.assert_allclose(result, expected, atol=3e-6)
        position += tokens

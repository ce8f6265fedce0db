"""The KV cache and attention against float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.kernels.attention_memory import COUNTER, Scratch, partial_bytes
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.kv_layout import CHUNK, KINDS, KvBlock
from edgellm.kernels.layout import Append, Attend, Sequence, State, align, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target
from edgellm.kernels.team import Team

# float32 arithmetic, and with int8 16-bit codes of queries and probabilities (those of keys and values the
# expected values share). Of many results the worst is some ten times as wrong as they are on average.
TOLERANCE = {"fp16": 4e-6, "int8": 3e-4}
MEAN = 0.15  # of the tolerance: what the root mean square of a call's errors may be


def softmax_attention(q, k, v, scale, window, softcap, position):  # type: ignore[no-untyped-def]
    """q: (T, heads, d); k, v: (positions, kv_heads, d). The textbook formula, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        end = position + t + 1
        first = max(0, end - window) if window else 0
        for h in range(q.shape[1]):
            s = k[first:end, h // group] @ q[t, h].astype(np.float64) * scale
            if softcap:
                s = softcap * np.tanh(s / softcap)
            p = np.exp(s - s.max())
            out[t, h] = p @ v[first:end, h // group] / p.sum()
    return out


def stored(x: np.ndarray, kv: str) -> np.ndarray:
    """What the cache keeps of (T, kv_heads, d) float32, as float64."""
    if kv == "fp16":
        return x.astype(np.float16).astype(np.float64)
    scale = (np.abs(x).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    # In the kernel's own arithmetic: a number half way between two codes may go either way in another.
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(x * inverse), -127, 127).astype(np.float64) * scale


@dataclass
class OneSequence:
    """A cache, and what went into it."""

    cache: np.ndarray
    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    position: int = 0


class Rig:
    """Runs append and attend on a team of threads for several sequences at once."""

    def __init__(
        self, target: Target, kv: str, kv_heads: int, group: int, dim: int, *, sequences: int = 1,
        context: int = 700, threads: int = 1, window: int | None = None, softcap: float | None = None,
        spread: float = 1.0, seed: int = 0,
    ):  # fmt: skip
        self.kv, self.kv_heads, self.group, self.dim = kv, kv_heads, group, dim
        self.window, self.softcap, self.spread = window, softcap, spread
        self.rng = np.random.default_rng(seed)
        block = KvBlock.of(kv, dim).nbytes
        self.before = 2 * block  # a slot in front, and one behind
        self.stride = self.before + kv_heads * block + 64
        chunks = -(-context // CHUNK)
        self.sequences = [OneSequence(aligned(chunks * self.stride, np.uint8)) for _ in range(sequences)]
        for s in self.sequences:
            s.cache[:] = 0x7F  # NaN, or huge: nothing may come of what was never written
        self.team = Team(threads, target)
        self.kernels = [
            load_kernels([name], target)[name]
            for name in (
                f"attention/part=append,kv={kv},dim={dim}",
                f"attention/part=attend,kv={kv},dim={dim},group={group}",
            )
        ]
        width = align(dim, 16)
        self.each = Scratch(group, width).nbytes
        self.memory = [
            aligned(self.each * threads, np.uint8),
            aligned(COUNTER * (2 + sequences * kv_heads), np.uint8),
            aligned(sequences * kv_heads * partial_bytes(group, width), np.uint8),
        ]

    def step(self, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """New tokens in every sequence: what attention gives for them, and what it should."""
        return [(result, expected()) for result, expected in self.run(rows)]

    def run(self, rows: list[int]) -> list[tuple[np.ndarray, Callable[[], np.ndarray]]]:
        """The same; what it should give is computed when it is asked for, before the next call."""
        total, heads = sum(rows), self.kv_heads * self.group
        q, k, v, out = (
            aligned((total + 1) * n * self.dim + 16, np.float32)
            for n in (heads, self.kv_heads, self.kv_heads, heads)
        )
        for array, seed in zip((q, k, v), self.rng.integers(0, 2**32, 3), strict=True):
            array[:] = np.random.default_rng(seed).standard_normal(array.size) * self.spread
        table = aligned(len(rows) * len(Sequence), np.int64).reshape(len(rows), -1)
        first = 0
        for line, count, s in zip(table, rows, self.sequences, strict=True):
            line[:] = record(Sequence, FIRST_ROW=first, ROWS=count, POSITION=s.position, KV=address(s.cache))
            first += count
        state = record(
            State, TOKENS=total, SEQUENCES=len(rows), SEQUENCE_TABLE=address(table), SCRATCH_BYTES=self.each,
            **dict(zip(("SCRATCH", "COUNTERS", "PARTIALS"), map(address, self.memory), strict=True)),
        )  # fmt: skip
        where = {"KV_HEADS": self.kv_heads, "KV_BEFORE": self.before, "KV_STRIDE": self.stride}
        row, kv_row = 4 * heads * self.dim, 4 * self.kv_heads * self.dim
        append = record(Append, K=address(k), V=address(v), K_STRIDE=kv_row, V_STRIDE=kv_row, **where)
        attend = record(
            Attend, Q=address(q), Q_STRIDE=row, OUT=address(out), OUT_STRIDE=row, SCALE=self.dim**-0.5,
            WINDOW=self.window or 0, SOFTCAP=self.softcap or 0.0, **where,
        )  # fmt: skip
        for kernel, args in zip(self.kernels, (append, attend), strict=True):
            self.team.run(kernel, address(args), address(state))
        assert not self.memory[1].any()  # the counters are back at 0
        first = 0
        results: list[tuple[np.ndarray, Callable[[], np.ndarray]]] = []
        for count, s in zip(rows, self.sequences, strict=True):
            inputs = slice(first, first + count)
            s.keys.append(stored(self._rows(k, self.kv_heads, inputs), self.kv))
            s.values.append(stored(self._rows(v, self.kv_heads, inputs), self.kv))
            expected = partial(
                softmax_attention, self._rows(q, heads, inputs), np.concatenate(s.keys),
                np.concatenate(s.values), self.dim**-0.5, self.window, self.softcap, s.position,
            )  # fmt: skip
            results.append((self._rows(out, heads, inputs).copy(), expected))
            s.position += count
            first += count
        return results

    def _rows(self, array: np.ndarray, heads: int, rows: slice) -> np.ndarray:
        count = (array.size - 16) // (heads * self.dim)
        return array[: count * heads * self.dim].reshape(count, heads, self.dim)[rows]


def check(rig: Rig, steps: list[list[int]]) -> None:
    try:
        for rows in steps:
            for result, expected in rig.step(rows):
                # Rounding grows with scores, they with spread^2. A tanh near 0 is a difference of near-ones.
                atol = (TOLERANCE[rig.kv] * rig.spread**2 + (rig.softcap or 0) * 2.0**-21) * rig.spread
                np.testing.assert_allclose(result, expected, atol=atol)
                assert np.sqrt(((result - expected) ** 2).mean()) < MEAN * atol
    finally:
        rig.team.close()


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "window", "softcap"),
    [
        (2, 3, 64, None, None),
        (3, 1, 24, 1, 5.0),
        (3, 1, 24, 100, None),
        (1, 5, 80, 20, None),
        (1, 5, 80, None, 30.0),
    ],
)
def test_attention_over_several_calls(
    target: Target, kv: str, kv_heads: int, group: int, dim: int, window: int | None, softcap: float | None
) -> None:
    rig = Rig(target, kv, kv_heads, group, dim, window=window, softcap=softcap, seed=dim)
    check(rig, [[n] for n in (1, 17, 1, 6, 33, 1, 4, 70, 1, 2, 300, 1)])


@pytest.mark.parametrize("kv", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_several_sequences_of_any_shape(target: Target, kv: str, data: st.DataObject) -> None:
    draw = data.draw
    sequences = draw(st.integers(1, 4))
    depths = draw(st.lists(st.integers(1, 400), min_size=sequences, max_size=sequences))
    steps = draw(
        st.lists(
            st.lists(st.sampled_from([1, 1, 1, 2, 5, 60]), min_size=sequences, max_size=sequences), max_size=3
        )
    )
    group, dim = draw(st.sampled_from([(3, 64), (1, 24), (5, 80)]))
    rig = Rig(
        target, kv, draw(st.integers(1, 4)), group, dim, sequences=sequences, threads=draw(st.integers(1, 4)),
        window=draw(st.sampled_from([None, 1, 40, 64, 150])), softcap=draw(st.sampled_from([None, 5.0])),
        spread=draw(st.sampled_from([1.0, 3.0])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    check(rig, [depths, *steps])


@pytest.mark.parametrize("kv", KINDS)
def test_result_does_not_depend_on_threads_or_on_other_sequences(target: Target, kv: str) -> None:
    """Bit by bit, at a depth where the work is cut into spans."""
    results = []
    for threads, sequences in ((1, 1), (2, 1), (3, 1), (4, 3)):
        rig = Rig(target, kv, 3, 3, 64, sequences=sequences, threads=threads, context=1100)
        rig.rng = np.random.default_rng(5)
        first = rig.run([1000, 77, 1][:sequences])[0][0]
        rig.rng = np.random.default_rng(6)
        results.append((first, rig.run([1, 1, 9][:sequences])[0][0]))
        rig.team.close()
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            if len(mine) == len(theirs):
                np.testing.assert_array_equal(mine, theirs)

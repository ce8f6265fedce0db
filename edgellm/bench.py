"""Speed of a loaded model: prefill and decode of random tokens, as llama-bench measures them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgellm.program import access, ops

if TYPE_CHECKING:
    from edgellm.executors.base import Session
    from edgellm.model import Model

WARM_UP_DECODES = 4  # tokens; the first ones touch memory and wake the threads


@dataclass
class Result:
    """One test: "pp128" is a prompt of 128 tokens in one go, "tg64" 64 tokens one by one."""

    test: str
    tokens: int
    depth: int  # tokens in the KV cache before the test
    samples: list[float] = field(default_factory=list)  # tokens per second, one per repetition

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def measure(
    model: Model, *, prompt: int, generate: int, depth: int, repetitions: int
) -> tuple[list[Result], int | None]:
    """Run the tests (a count of 0 leaves one out), each after a warm-up.

    Returns the results and the most bytes that the KV cache held (None if the executor does not tell).

    Tokens are random, from a fixed seed: what a token is makes no difference to the time of a dense model.
    """
    rng = np.random.default_rng(0)
    longest = max(prompt, generate)
    session = model.new_session(depth + longest)
    tokens = rng.integers(0, model.program.vocab_size, depth + longest)

    def prefill() -> None:
        session.prefill(tokens[depth : depth + prompt])

    def decode(count: int = generate) -> None:
        for token in tokens[depth : depth + count]:
            session.decode(int(token))

    if depth:
        session.prefill(tokens[:depth])
    results = []
    kv_bytes = []
    if prompt:
        prefill()
        results.append(_repeat(Result(f"pp{prompt}", prompt, depth), session, prefill, repetitions))
        kv_bytes.append(getattr(session, "kv_bytes", None))
    if generate:
        session.rewind(depth)
        decode(min(generate, WARM_UP_DECODES))
        results.append(_repeat(Result(f"tg{generate}", generate, depth), session, decode, repetitions))
        kv_bytes.append(getattr(session, "kv_bytes", None))
    return results, max((held for held in kv_bytes if held is not None), default=None)


def _repeat(result: Result, session: Session, test: Callable[[], None], repetitions: int) -> Result:
    for _ in range(repetitions):
        session.rewind(result.depth)
        started = time.perf_counter()
        test()
        result.samples.append(result.tokens / (time.perf_counter() - started))
    return result


def weight_bytes_per_token(model: Model) -> int:
    """Bytes of weights, as stored in the model file, that one decoded token needs.

    Every matrix and vector of the Program once, and one row of a table that is only looked up.
    """
    whole, rows = set(), set()
    for op in model.program.ops:
        names = {weight.name for weight in access.weights(op).values()}
        if isinstance(op, ops.Embed):
            rows |= names
        else:
            whole |= names
    tensors = model.checkpoint.tensors
    return sum(tensors[name].nbytes for name in whole) + sum(
        tensors[name].nbytes // tensors[name].shape[0] for name in rows - whole
    )


def peak_rss_bytes() -> int:
    """Most memory that this process held at any time.

    Linux's VmHWM begins with the program; getrusage's figure may begin with the process that started it.
    """
    import resource
    import sys

    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Speed of a loaded model: prefill and decode of random tokens, as llama-bench measures them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgellm.program import access, ops

if TYPE_CHECKING:
    from edgellm.executors.base import Session
    from edgellm.executors.native.executor import NativeExecutor
    from edgellm.flash.counters import TokenLog
    from edgellm.model import Model
    from edgellm.roofline import Step

WARM_UP_DECODES = 4  # tokens; the first ones touch memory and wake the threads


@dataclass
class Result:
    """One test: "pp128" is a prompt of 128 tokens in one go, "tg64" 64 tokens one by one, "tg64x4" the
    same for four sequences at once."""

    test: str
    tokens: int
    depth: int  # tokens in the KV cache before the test
    samples: list[float] = field(default_factory=list)  # tokens per second, one per repetition

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def measure(
    model: Model, *, prompt: int, generate: int, depth: int, repetitions: int, sequences: int = 1,
    log: TokenLog | None = None, tokens: np.ndarray | None = None,
) -> tuple[list[Result], int | None]:  # fmt: skip
    """Run the tests (a count of 0 leaves one out), each after a warm-up.

    sequences above 1 adds the decode of so many sequences at once, tokens per second summed over them.
    log: gets an entry for every token decoded alone, but those of the warm-up, if the model has a budget.
    Returns the results and the most bytes that the KV cache held (None if the executor does not tell).

    tokens: ids to run, at least depth + the longest test; by default random ones, from a fixed seed: what a
    token is makes no difference to the time of a dense model.
    """
    longest = max(prompt, generate)
    if tokens is None:
        tokens = np.random.default_rng(0).integers(0, model.program.vocab_size, depth + longest)
    sessions = [model.new_session(depth + longest) for _ in range(sequences)]
    one = sessions[0]

    def prefill() -> None:
        one.prefill(tokens[depth : depth + prompt])

    def decode(count: int = generate) -> None:
        for token in tokens[depth : depth + count]:
            one.decode(int(token))

    def decode_logged() -> None:
        counters = model.executor.flash_counters  # type: ignore[attr-defined]
        assert log is not None
        for token in tokens[depth : depth + generate]:
            before, started = counters(), time.perf_counter()
            logits = one.decode(int(token))
            log.seconds.append(time.perf_counter() - started)
            log.likeliest.append(int(logits.argmax()))
            log.counters.append(counters() - before)

    def decode_all(count: int = generate) -> None:
        for token in tokens[depth : depth + count]:
            model.executor.decode_batch(sessions, [int(token)] * sequences)

    if depth:
        one.prefill(tokens[:depth])
    results = []
    kv_bytes = []
    if prompt:
        prefill()
        results.append(_repeat(Result(f"pp{prompt}", prompt, depth), [one], prefill, repetitions))
        kv_bytes.append(_kv_bytes([one]))
    if generate:
        one.rewind(depth)
        decode(min(generate, WARM_UP_DECODES))
        results.append(
            _repeat(
                Result(f"tg{generate}", generate, depth),
                [one],
                decode if log is None else decode_logged,
                repetitions,
            )
        )
        kv_bytes.append(_kv_bytes([one]))
    if generate and sequences > 1:
        one.rewind(depth)
        for other in sessions[1:] if depth else []:
            other.prefill(tokens[:depth])
        decode_all(min(generate, WARM_UP_DECODES))
        together = Result(f"tg{generate}x{sequences}", generate * sequences, depth)
        results.append(_repeat(together, sessions, decode_all, repetitions))
        kv_bytes.append(_kv_bytes(sessions))
    return results, max((held for held in kv_bytes if held is not None), default=None)


def _repeat(
    result: Result, sessions: Sequence[Session], test: Callable[[], None], repetitions: int
) -> Result:
    for _ in range(repetitions):
        for session in sessions:
            session.rewind(result.depth)
        started = time.perf_counter()
        test()
        result.samples.append(result.tokens / (time.perf_counter() - started))
    return result


def _kv_bytes(sessions: Sequence[Session]) -> int | None:
    """Bytes of cache that the sessions hold, None where they do not tell."""
    held = [getattr(session, "kv_bytes", None) for session in sessions]
    return None if None in held else sum(filter(None, held))


def profile_steps(
    model: Model, executor: NativeExecutor, *, prompt: int, generate: int, depth: int, sequences: int = 1
) -> dict[str, Step]:
    """One profiled step each of "decode", "batch" (decode of several sequences) and "prefill", as far as
    they are measured at all."""
    from edgellm.roofline import DECODE_SAMPLES, PREFILL_SAMPLES, profile, profile_batch

    tokens = np.random.default_rng(0).integers(0, model.program.vocab_size, depth + max(prompt, 1))
    session = model.new_session(len(tokens))
    if depth:
        session.prefill(tokens[:depth])
    steps = {}
    if generate:
        steps["decode"] = profile(executor, session, tokens[depth : depth + 1], DECODE_SAMPLES)
    if generate and sequences > 1:
        together = [model.new_session(len(tokens)) for _ in range(sequences)]
        for one in together if depth else ():
            one.prefill(tokens[:depth])
        steps["batch"] = profile_batch(executor, together, DECODE_SAMPLES)
    if prompt:
        steps["prefill"] = profile(executor, session, tokens[depth:], PREFILL_SAMPLES)
    return steps


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

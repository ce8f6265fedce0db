"""How near each op of a model comes to what the machine can do: its time beside the time of the bound.

The roofline model (Williams, Waterman and Patterson, 2009): an op cannot be faster than its bytes over the
memory's bandwidth, nor than its multiply-adds over their peak rate. The greater of the two is its bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.executors.base import Session

if TYPE_CHECKING:
    from edgellm.executors.native.executor import NativeExecutor
    from edgellm.executors.native.profile import OpTime

DECODE_SAMPLES = 15
PREFILL_SAMPLES = 3


@dataclass(frozen=True)
class Machine:
    """What the threads in use reach together, measured: bytes and multiply-adds per second."""

    stream: float
    int8: float
    float32: float

    def bound(self, op: OpTime) -> tuple[str | None, float]:
        """("memory", "int8" or "float32", seconds that op takes at least); (None, 0) if it reads no weights
        and no cache and multiplies nothing, so that only its fixed costs count."""
        times = {
            "memory": (op.weight_bytes + op.kv_bytes) / self.stream,
            "int8": op.int8_macs / self.int8,
            "float32": op.float_macs / self.float32,
        }
        name = max(times, key=times.__getitem__)
        return (name, times[name]) if times[name] > 0 else (None, 0.0)


@dataclass(frozen=True)
class Step:
    """One profiled call: `tokens` tokens behind `depth` others, or one token in each of `sequences`
    sequences. The ops' times are medians of several."""

    tokens: int
    depth: int
    seconds: float
    ops: list[OpTime]
    sequences: int = 1

    def report(self, machine: Machine) -> dict[str, Any]:
        """As JSON. "bound_seconds" is what the op would take at its bound, "share" how much of that it
        reaches."""
        rows = []
        for op in self.ops:
            name, least = machine.bound(op)
            share = least / op.seconds if name and op.seconds else None
            rows.append({**asdict(op), "bound": name, "bound_seconds": least, "share": share})
        return {
            "tokens": self.tokens, "depth": self.depth, "sequences": self.sequences,
            "step_seconds": self.seconds, "ops": rows,
        }  # fmt: skip


def profile(
    executor: NativeExecutor, session: Session, tokens: Sequence[int] | np.ndarray, samples: int
) -> Step:
    """Profile the call `samples` times at the session's position, which stays; the model should be warm."""
    depth = session.position
    runs = []
    for _ in range(samples):
        runs.append(executor.profile(session, tokens))
        session.rewind(depth)
    return Step(len(tokens), depth, *median(runs))


def profile_batch(executor: NativeExecutor, sessions: Sequence[Session], samples: int) -> Step:
    """Profile one decoded token in each session, `samples` times; their positions, all the same, stay."""
    depth = sessions[0].position
    runs = []
    for _ in range(samples):
        runs.append(executor.profile_batch(sessions, [0] * len(sessions)))
        for session in sessions:
            session.rewind(depth)
    return Step(len(sessions), depth, *median(runs), sequences=len(sessions))


def median(runs: Sequence[list[OpTime]]) -> tuple[float, list[OpTime]]:
    """(seconds of the whole call, its ops), each the median of the runs."""
    from edgellm.executors.native.profile import OpTime

    whole = statistics.median(sum(op.mean_seconds + op.wait_seconds for op in run) for run in runs)
    times = ("seconds", "mean_seconds", "wait_seconds")
    ops = []
    for same in zip(*runs, strict=True):
        middle = {name: statistics.median(getattr(op, name) for op in same) for name in times}
        ops.append(OpTime(**{**asdict(same[0]), **middle}))
    return whole, ops


def table(step: dict[str, Any]) -> str:
    """What `Step.report` returned, for a person."""
    seconds = step["step_seconds"]
    what = "decode" if step["tokens"] == 1 else f"prefill of {step['tokens']} tokens"
    if step["sequences"] > 1:
        what = f"decode of {step['sequences']} sequences"
    depth = f" at depth {step['depth']}" if step["depth"] else ""
    lines = [
        f"{what}{depth}: {_time(seconds)} a step, {step['tokens'] / seconds:.1f} tokens/s while profiled",
        f"  {'op':<14}{'calls':>6}{'weights':>10}{'KV':>10}{'int8':>9}{'float':>9}{'time':>11}{'waiting':>11}"
        f"{'of step':>9}   bound",
    ]
    for op in step["ops"]:
        near = "-" if op["share"] is None else f"{op['bound']}, {op['share']:.0%} of it"
        lines.append(
            f"  {op['label']:<14}{op['calls']:>6}{_count(op['weight_bytes'], 'B'):>10}"
            f"{_count(op['kv_bytes'], 'B'):>10}{_count(op['int8_macs']):>9}{_count(op['float_macs']):>9}"
            f"{_time(op['seconds']):>11}{_time(op['wait_seconds']):>11}"
            f"{(op['mean_seconds'] + op['wait_seconds']) / seconds:>9.1%}   {near}"
        )
    least = sum(op["bound_seconds"] for op in step["ops"])
    waiting = sum(op["wait_seconds"] for op in step["ops"])
    lines.append(
        f"  all at their bounds: {_time(least)}, {least / seconds:.0%} of the step; "
        f"in barriers {waiting / seconds:.1%} of it"
    )
    return "\n".join(lines)


def _count(number: float, unit: str = "") -> str:
    if not number:
        return "-"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"

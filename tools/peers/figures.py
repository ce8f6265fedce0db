"""What came of the rows: figures, whether they reach their bars, and the table and JSON that say so."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.errors import CheckFailed
from tools.peers.rows import Call, Row, Source

Samples = dict[str, list[float]]  # figure of a call -> one entry a round
WITHIN = {"x": 1.0, "%": 100.0, "MB": 1.0}  # factor of a ratio that is shown in this unit


@dataclass(frozen=True)
class Figure:
    """A row with its samples, one entry a round; none where it was not measured."""

    row: Row
    ours: list[float]
    peer_name: str
    peer: list[float]
    reason: str

    @property
    def values(self) -> list[float]:
        """In the row's unit. A ratio is taken within a round, so that a slow moment slows both sides."""
        if not self.peer:
            return self.ours
        factor = WITHIN[self.row.unit]
        return [factor * mine / other for mine, other in zip(self.ours, self.peer, strict=True)]

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """None where there is nothing to judge."""
        if self.row.bar is None or self.value is None:
            return None
        return self.value <= self.row.bar if self.row.at_most else self.value >= self.row.bar

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "group": self.row.group,
            "what": self.row.what,
            "model": self.row.subject,
            "threads": self.row.threads,
            "activations": int(self.row.activations),
            "edgellm": _summary(self.ours),
            "peer": {"name": self.peer_name, **_summary(self.peer)} if self.peer else None,
            "value": None if self.value is None else {**_summary(self.values), "unit": self.row.unit},
            "bar": self.row.bar,
            "at_most": self.row.at_most,
            "met": self.met,
            "reason": self.reason,
        }


def _summary(samples: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(samples) if samples else None, "samples": samples}


def evaluate(row: Row, found: Mapping[Call, Samples], missing: Mapping[Call, str]) -> Figure:
    """The row's figure. A peer that was run in several variants ("tg64 fa=0", "tg64 fa=1") counts with the
    one whose median is best. missing: why a call could not be made."""
    sources = [source for source in (row.ours, row.peer) if source is not None]
    reason = row.reason or next((missing[s.call] for s in sources if s.call in missing), "")
    if reason or row.ours is None:
        return Figure(row, [], "", [], reason)
    ours = found[row.ours.call][row.ours.test]
    if row.peer is None:
        return Figure(row, ours, "", [], "")
    name, peer = best_variant(row.peer, found[row.peer.call])
    return Figure(row, ours, name, peer, "")


def best_variant(source: Source, samples: Samples) -> tuple[str, list[float]]:
    """(name of the peer, its samples)."""
    variants = {key: v for key, v in samples.items() if key.partition(" ")[0] == source.test}
    key = max(variants, key=lambda name: statistics.median(variants[name]))
    variant = key.partition(" ")[2]
    return source.name or f"{source.call.program} {variant}".strip(), variants[key]


def table(figures: list[Figure]) -> str:
    """One line for each figure, bars beside it; notes on what was not measured; how many bars are met."""
    notes = list(dict.fromkeys(f.reason for f in figures if f.reason))
    lines = [
        f"{'test':<32}{'model':<20}{'threads':>7}{'act.':>5}{'edgellm':>10}{'peer':>10}  {'':<15}"
        f"{'figure':>9}{'bar':>10}"
    ]
    for f in figures:
        row = f.row
        ours = _speed(f.ours) if f.peer else "-"
        missing = f"not measurable here [{notes.index(f.reason) + 1}]" if f.reason else ""
        verdict = {True: "met", False: "MISSED", None: missing}
        lines.append(
            f"{row.what:<32}{row.subject:<20}{row.threads:>7}{row.activations:>5}{ours:>10}"
            f"{_speed(f.peer):>10}  {f.peer_name:<15}{_value(f.value, row.unit):>9}{_bar(row):>10}  "
            f"{verdict[f.met]}".rstrip()
        )
    judged = [f for f in figures if f.met is not None]
    lines += [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    lines.append(f"{sum(bool(f.met) for f in judged)} of {len(judged)} bars met")
    return "\n".join(lines)


def markdown(figures: list[Figure]) -> str:
    """The measured figures as a table for the documentation."""
    lines = ["| test | model | threads | edgellm | peer | figure | bar |", "|---|---|---|---|---|---|---|"]
    for f in figures:
        if f.value is None:
            continue
        what = f.row.what + ("" if f.row.activations == "16" else f", {f.row.activations}-bit activations")
        ours = _speed(f.ours) if f.peer else ""
        peer = f"{_speed(f.peer)} ({f.peer_name})" if f.peer else ""
        value = _value(f.value, f.row.unit)
        figure = f"**{value}**" if f.met else value
        bar = "" if f.row.bar is None else _bar(f.row).replace("<=", "at most").replace(">=", "at least")
        lines.append(f"| {what} | {f.row.subject} | {f.row.threads} | {ours} | {peer} | {figure} | {bar} |")
    return "\n".join(lines) + "\n"


def _speed(samples: list[float]) -> str:
    return f"{statistics.median(samples):.1f}" if samples else "-"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return {"x": f"{value:.2f}x", "%": f"{value:.0f} %", "MB": f"{value:.0f} MB"}[unit]


def _bar(row: Row) -> str:
    if row.bar is None:
        return "-"
    return f"{'<=' if row.at_most else '>='} {_value(row.bar, row.unit)}"


def check(figures: list[Figure]) -> None:
    """Raises CheckFailed if a bar was missed."""
    judged = [f for f in figures if f.met is not None]
    missed = [f"{f.row.title}: {_value(f.value, f.row.unit)}, not {_bar(f.row)}" for f in judged if not f.met]
    if missed:
        raise CheckFailed(f"Missed {len(missed)} of {len(judged)} bars: {'; '.join(missed)}.")

"""Line charts as SVG text, drawn by hand: axes, lines and a legend do not need a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

PLOT_WIDTH, PLOT_HEIGHT = 560, 260  # pixels of a panel's axes
LEFT, RIGHT, TOP, BETWEEN, BOTTOM = 84, 132, 48, 84, 58  # around the axes; RIGHT holds the legend
TICKS = 9  # at most, on an axis
# From cool to warm for series that have an order; each reads on white and on black.
COLOURS = ("#6366f1", "#3b82f6", "#0891b2", "#059669", "#65a30d", "#ca8a04", "#ea580c", "#dc2626")
STYLE = (
    "text{font:12px sans-serif;fill:#1f2937}.title{font-size:15px;font-weight:bold}.paper{fill:#fff}"
    ".grid{stroke:#e5e7eb}.axis{stroke:#6b7280;fill:none}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.paper{fill:#111827}.grid{stroke:#374151}"
    ".axis{stroke:#9ca3af}}"
)


@dataclass(frozen=True)
class Series:
    """A line through the points (x[i], y[i])."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """What an axis is called, its scale, how its numbers are written, and where (None: at round ones)."""

    label: str
    log: bool = False
    write: Callable[[float], str] = "{:g}".format
    ticks: Sequence[float] | None = None


def line_chart(title: str, panels: Sequence[tuple[str, Sequence[Series]]], x: Axis, y: Axis) -> str:
    """An SVG document: one panel below the other, (name, its lines), all on the same scales.

    Readable on light and dark pages: it follows the reader's colour scheme. Raises ValueError where there is
    nothing to draw, or a value that a logarithmic axis does not have.
    """
    across = _Scale(x, [v for _, lines in panels for line in lines for v in line.x], 0, PLOT_WIDTH)
    up = _Scale(y, [v for _, lines in panels for line in lines for v in line.y], PLOT_HEIGHT, 0)
    parts = [_text(LEFT, 24, title, "start", "title")]
    top = TOP
    for name, lines in panels:
        inside = [*_grid(across, up), _text(0, -8, name, "start"), *_lines(lines, across, up)]
        inside.append(_text(PLOT_WIDTH / 2, PLOT_HEIGHT + 38, x.label, "middle"))
        turned = _text(0, 0, y.label, "middle")
        inside.append(f'<g transform="translate(-66 {PLOT_HEIGHT / 2:g}) rotate(-90)">{turned}</g>')
        parts.append(f'<g transform="translate({LEFT} {top + 12})">{"".join(inside)}</g>')
        top += PLOT_HEIGHT + BETWEEN
    width, height = LEFT + PLOT_WIDTH + RIGHT, top - BETWEEN + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


class _Scale:
    """Places values of an axis between two pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float):
        if not values or not all(math.isfinite(v) and (v > 0 or not axis.log) for v in values):
            raise ValueError(f"the axis '{axis.label}' needs finite values, and positive ones on a log scale")
        self.write = axis.write
        self._log, self._start, self._end = axis.log, start, end
        low, high = min(values), max(values)
        if axis.ticks is not None:
            self.ticks = [float(tick) for tick in axis.ticks]
        else:
            self.ticks = _log_ticks(low, high) if axis.log else _linear_ticks(low, high)
        low, high = min(low, *self.ticks), max(high, *self.ticks)
        self._low, self._span = self._position(low), (self._position(high) - self._position(low)) or 1.0

    def _position(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def __call__(self, value: float) -> float:
        return self._start + (self._end - self._start) * (self._position(value) - self._low) / self._span


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... around the values; powers of ten alone where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        every = [step * 10.0**decade for decade in decades for step in steps]
        first = max((i for i, tick in enumerate(every) if tick <= low), default=0)
        last = min((i for i, tick in enumerate(every) if tick >= high), default=len(every) - 1)
        if last - first < TICKS:
            break
    return every[first : max(last, first + 1) + 1]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten around the values."""
    rough = (high - low or abs(high) or 1.0) / (TICKS - 3)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _grid(across: _Scale, up: _Scale) -> Iterable[str]:
    for tick in up.ticks:
        y = up(tick)
        yield f'<line class="grid" x1="0" x2="{PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(-8, y + 4, up.write(tick), "end")
    for tick in across.ticks:
        x = across(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{PLOT_HEIGHT}"/>'
        yield _text(x, PLOT_HEIGHT + 18, across.write(tick), "middle")
    yield f'<path class="axis" d="M0 0V{PLOT_HEIGHT}H{PLOT_WIDTH}"/>'


def _lines(lines: Sequence[Series], across: _Scale, up: _Scale) -> Iterable[str]:
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        points = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="line" stroke="{colour}" points="{path}"/>'
        yield "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
        height = 10 + 20 * i  # of its line in the legend
        yield (
            f'<path class="line" stroke="{colour}" d="M{PLOT_WIDTH + 14} {height}h18"/>'
            f'<circle cx="{PLOT_WIDTH + 23}" cy="{height}" r="3" fill="{colour}"/>'
        )
        yield _text(PLOT_WIDTH + 38, height + 4, line.name, "start")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

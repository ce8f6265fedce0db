"""A bar chart as SVG text, drawn by hand: two bars a row do not need a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, LABEL, BAR, GAP = 720, 130, 16, 14
TITLE, SCALE = 420, 100  # of bars_reached: room for names, and the length that stands for the bar itself
COLOURS = {"edgellm": "#2563eb", "peer": "#9ca3af"}
NAMES = {"edgellm": "edgellm", "peer": "llama.cpp"}


def bars(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """An SVG document: for each row of `bench` two bars, tokens per second, on a scale of its own test.

    Prefill and decode differ by an order of magnitude, so each test has its own scale.
    """
    parts = [f'<text x="8" y="20" font-size="15" font-weight="bold">{escape(title)}</text>']
    y = 36
    for row in rows:
        top = max(r[who]["median"] for r in rows if r["test"] == row["test"] for who in COLOURS)
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        parts.append(f'<text x="8" y="{y + BAR + 4}">{escape(row["test"])}, {threads}</text>')
        for who, colour in COLOURS.items():
            value = row[who]["median"]
            length = value / top * (WIDTH - LABEL - 190)
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{value:,.0f} {NAMES[who]}</text>')
            y += BAR + 2
        y += GAP
    return _document(parts, y)


def bars_reached(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """An SVG document: how far each judged row of `matrix` is on the way to its bar, which is a line.

    A row that may be at most its bar is good to the left of the line. Longer ones than twice the bar end
    there.
    """
    parts = [f'<text x="8" y="20" font-size="15" font-weight="bold">{escape(title)}</text>']
    y, figures = 36, TITLE + 2 * SCALE + 10
    for row in rows:
        if row["met"] is None:
            continue
        value, unit = row["value"]["median"], row["value"]["unit"]
        length = min(value / row["bar"], 2.0) * SCALE
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        name = escape(f"{row['what']}, {row['model']}, {threads}")
        colour = "#16a34a" if row["met"] else "#dc2626"
        bound = f"{'at most' if row['at_most'] else 'at least'} {row['bar']:g}"
        parts.append(f'<text x="8" y="{y + 13}">{name}</text>')
        parts.append(f'<rect x="{TITLE}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{figures}" y="{y + 13}">{value:.3g} {escape(unit)} ({bound})</text>')
        y += BAR + 6
    line = TITLE + SCALE
    parts.append(f'<line x1="{line}" x2="{line}" y1="30" y2="{y}" stroke="#111" stroke-dasharray="4 3"/>')
    return _document(parts, y, figures + 140)


def _document(parts: Sequence[str], height: int, width: int = WIDTH) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )

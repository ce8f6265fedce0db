"""Bars of what a token's time goes to, as SVG text, in the style of chart.py."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgellm.flash.chart import COLOURS, STYLE

WIDTH, LEFT, TOP, HEIGHT, STEP = 560, 96, 72, 24, 40  # pixels: of the longest bar, and of its surroundings
PARTS = {"io": ("waiting for flash", COLOURS[1]), "memory": ("memory management", COLOURS[5]),
         "compute": ("computing", COLOURS[3])}  # fmt: skip


def ladder_chart(title: str, rungs: Mapping[str, Mapping[str, Any]]) -> str:
    """An SVG document: for each rung, as `edgellm bench --dram --json` tells of it, the milliseconds of a
    token and what they went to. Raises ValueError where there is none."""
    if not rungs:
        raise ValueError("there is nothing to draw")
    longest = max(found["latency_ms"]["mean"] for found in rungs.values())
    parts = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}: milliseconds of a token</text>']
    at = LEFT
    for label, colour in PARTS.values():
        parts.append(f'<rect x="{at}" y="38" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{at + 18}" y="49">{escape(label)}</text>')
        at += 170
    for i, (name, found) in enumerate(rungs.items()):
        latency, y = found["latency_ms"], TOP + STEP * i
        parts.append(f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        x = float(LEFT)
        for key, (_, colour) in PARTS.items():
            width = WIDTH * max(0.0, latency[key]) / longest
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" fill="{colour}"/>')
            x += width
        speed = 1e3 / latency["mean"]
        parts.append(
            f'<text x="{x + 8:.1f}" y="{y + 17}">{latency["mean"]:.0f} ms, {speed:.2f} tokens/s</text>'
        )
    width, height = LEFT + WIDTH + 190, TOP + STEP * len(rungs) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )

"""The figure of an evaluation: a dot and its interval for every task and model, as inline SVG.

In: rows of values with their intervals. Out: an SVG string, all text escaped. Colours are classes of the page's style
sheet, as in `plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fam_engine.report.wording import short_names, visible

_WIDTH, _LEFT, _RIGHT, _LINE, _GAP = 760.0, 190.0, 16.0, 15.0, 12.0
_MAX_NAME: Final = 26
_STEPS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
_MOST_TICKS: Final = 8


@dataclass(frozen=True)
class Mark:
    """A value with its interval, in the colour of its model."""

    colour: str
    title: str
    value: float
    low: float
    high: float


def interval_panel(rows: Sequence[tuple[str, Sequence[Mark]]], *, label: str, signed: bool) -> str:
    """Draw intervals, a row a task and a line a model.

    Args:
        rows: Name and marks of each task, top to bottom.
        label: What the axis shows, with its unit.
        signed: Whether values are differences, drawn around an upright line at 0.
    """
    marks = [mark for _, some in rows for mark in some]
    low = min([mark.low for mark in marks] + [0.0])
    high = max([mark.high for mark in marks] + [0.0])
    step = next((s for s in _STEPS if (high - low) / s <= _MOST_TICKS), _STEPS[-1])
    low, high = math.floor(low / step) * step, max(math.ceil(high / step), 1) * step
    heights = [_GAP + _LINE * max(len(some), 1) for _, some in rows]
    bottom = sum(heights)
    parts = _grid(low, high, step, bottom, signed=signed)
    top = 0.0
    names = short_names([name for name, _ in rows], _MAX_NAME)
    for (name, some), height in zip(rows, heights, strict=True):
        parts.append(_row(names[name], some, top + _GAP / 2, (low, high)))
        top += height
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{bottom + 34:.0f}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {bottom + 40:.0f}" role="img">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def _across(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)


def _grid(low: float, high: float, step: float, bottom: float, *, signed: bool) -> list[str]:
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        x = _across(value, (low, high))
        is_zero = abs(value) < step / 2
        kind = "zero" if signed and is_zero else "grid"
        text = f"{100 * value:+.0f}" if signed and not is_zero else f"{100 * value:.0f}"
        parts.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.0f}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.0f}" text-anchor="middle">{text}</text>'
        )
    return parts


def _row(name: str, marks: Sequence[Mark], top: float, ends: tuple[float, float]) -> str:
    middle = top + _LINE * max(len(marks), 1) / 2 + 4
    parts = [
        f'<text class="name" x="{_LEFT - 12:.0f}" y="{middle:.1f}" text-anchor="end">'
        f"{escape(name)}</text>"
    ]
    for number, mark in enumerate(marks):
        y = top + _LINE * (number + 0.5)
        left, x, right = (_across(v, ends) for v in (mark.low, mark.value, mark.high))
        parts.append(
            f'<g class="{mark.colour}"><title>{escape(visible(mark.title))}</title>'
            f'<line class="reach" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    return "".join(parts)

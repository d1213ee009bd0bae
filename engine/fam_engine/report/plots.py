"""The report's figures as inline SVG, drawn by hand: no script, no font, no plotting library.

In: logarithms of the values by source. Out: SVG strings, with all text escaped. Colours are classes
(`c0` to `c6`, `cx` beyond) which the page's style sheet fills in for light and dark. A panel is
about 360 units wide and shown at about that many pixels, so text keeps its size on a telephone;
whoever has more room sees panels side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from fam_engine.report.axes import LogAxis, density
from fam_engine.report.wording import number, short_names, visible

Floats = npt.NDArray[np.float64]

_NUM_COLOURS = 7
_WIDTH, _ROW, _CURVE, _MARGIN = 360.0, 50.0, 28.0, 8.0
# Below this a density would invent a shape; the values themselves are drawn.
_MIN_FOR_DENSITY = 10
_CELL, _CELL_LEFT, _CELL_TOP, _CELL_BOTTOM = 200.0, 42.0, 22.0, 34.0
_NUM_LENGTH_BINS, _MIN_IN_BIN = 6, 5
# Characters of a name that fit.
_MAX_NAME, _MAX_CELL_NAME = 34, 26


@dataclass(frozen=True)
class Row:
    """One source of a panel.

    Attributes:
        name: Of the source.
        colour: Its class.
        logs: float64[n] natural logarithms of its values.
        median: {value, low, high} of its values themselves.
    """

    name: str
    colour: str
    logs: Floats
    median: Mapping[str, float | None]


def colour_of(position: int) -> str:
    """Give the colour class of the source at a position in the order shown."""
    return f"c{position}" if position < _NUM_COLOURS else "cx"


def distribution_panel(rows: Sequence[Row], axis: LogAxis, *, label: str) -> str:
    """Draw the distribution of each source in a row of its own, above a common axis.

    Args:
        rows: The sources from top to bottom.
        axis: Common to all rows.
        label: What the axis shows, with its unit.
    """
    height = _ROW * len(rows)
    inner = _WIDTH - 2 * _MARGIN
    parts = []
    for log, text in axis.ticks:
        x = _MARGIN + inner * float(axis.place(np.array(log)))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height:.0f}"/>')
        parts.append(_tick(text, x, height + 15, anchor=_anchor(x, _WIDTH)))
    names = short_names([row.name for row in rows], _MAX_NAME)
    parts += [
        _distribution(row, names[row.name], axis, _ROW * (i + 1)) for i, row in enumerate(rows)
    ]
    parts.append(
        f'<text class="axis" x="{_WIDTH / 2:.0f}" y="{height + 33:.0f}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )
    return _svg(_WIDTH, height + 40, f"Distribution of {label} by source", parts)


def _distribution(row: Row, name: str, axis: LogAxis, base: float) -> str:
    inner = _WIDTH - 2 * _MARGIN
    top = base - _ROW + 15
    parts = [
        f'<text class="name" x="{_MARGIN:.0f}" y="{top:.0f}">{escape(name)}</text>',
        f'<text class="value" x="{_WIDTH - _MARGIN:.0f}" y="{top:.0f}" text-anchor="end">'
        f"median {number(row.median['value'])}</text>",
        f'<line class="base" x1="{_MARGIN:.0f}" x2="{_WIDTH - _MARGIN:.0f}" y1="{base:.0f}" '
        f'y2="{base:.0f}"/>',
    ]
    if len(row.logs) < _MIN_FOR_DENSITY:
        for x in _MARGIN + inner * axis.place(row.logs):
            parts.append(
                f'<circle class="dot {row.colour}" cx="{x:.1f}" cy="{base - 5:.0f}" r="3"/>'
            )
    else:
        curve = density(row.logs, axis)
        xs = _MARGIN + inner * (np.arange(len(curve)) + 0.5) / len(curve)
        points = " ".join(
            f"{x:.1f},{base - _CURVE * y:.1f}" for x, y in zip(xs, curve, strict=True)
        )
        ends = f"{xs[0]:.1f},{base:.1f} {points} {xs[-1]:.1f},{base:.1f}"
        parts.append(f'<polygon class="fill {row.colour}" points="{ends}"/>')
        parts.append(f'<polyline class="line {row.colour}" points="{points}"/>')
    return "".join([*parts, _median_mark(row, axis, base)])


def _median_mark(row: Row, axis: LogAxis, base: float) -> str:
    value, low, high = row.median["value"], row.median["low"], row.median["high"]
    if value is None or value <= 0:
        return ""
    ends = np.log([value if end is None or end <= 0 else end for end in (low, value, high)])
    left, middle, right = _MARGIN + (_WIDTH - 2 * _MARGIN) * axis.place(ends)
    return (
        f'<line class="span {row.colour}" x1="{left:.1f}" x2="{right:.1f}" y1="{base:.0f}" '
        f'y2="{base:.0f}"/><line class="median" x1="{middle:.1f}" x2="{middle:.1f}" '
        f'y1="{base - _CURVE:.0f}" y2="{base + 3:.0f}"/>'
    )


def cloud_panels(
    rows: Sequence[Row],
    lengths: Sequence[Floats],
    axes: tuple[LogAxis, LogAxis],
    shown: Sequence[npt.NDArray[np.int64]],
) -> list[str]:
    """Draw perplexity against length, a panel a source, each over the cloud of all.

    Args:
        rows: The sources; `logs` are log perplexities.
        lengths: Log lengths of each source, as long as its `logs`.
        axes: Of length and of perplexity.
        shown: Which records of each source appear as dots.
    """
    dots = [
        _dots(length[some], row.logs[some], axes)
        for row, length, some in zip(rows, lengths, shown, strict=True)
    ]
    cloud = f'<path id="cloud" class="cloud" d="{"".join(dots)}"/>'
    names = short_names([row.name for row in rows], _MAX_CELL_NAME)
    panels = []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        # The first panel holds the cloud, the others point to it.
        parts = [*_frame(names[row.name], axes), cloud if i == 0 else '<use href="#cloud"/>']
        parts.append(f'<path class="own {row.colour}" d="{dots[i]}"/>')
        parts.append(_trend(row, length, axes))
        title = f"Perplexity against length, {row.name}"
        panels.append(_svg(_CELL, _CELL, title, parts))
    return panels


def _place_cell(x: Floats, y: Floats, axes: tuple[LogAxis, LogAxis]) -> tuple[Floats, Floats]:
    across = _CELL_LEFT + (_CELL - _CELL_LEFT - 6) * axes[0].place(x)
    upward = _CELL - _CELL_BOTTOM - (_CELL - _CELL_BOTTOM - _CELL_TOP) * axes[1].place(y)
    return across, upward


def _dots(x: Floats, y: Floats, axes: tuple[LogAxis, LogAxis]) -> str:
    # A path of zero-length strokes with round caps: 12 bytes a dot instead of a circle's 40.
    placed = zip(*_place_cell(x, y, axes), strict=True)
    return "".join(f"M{a:.0f} {b:.0f}h0" for a, b in placed)


def _frame(name: str, axes: tuple[LogAxis, LogAxis]) -> list[str]:
    bottom = _CELL - _CELL_BOTTOM
    parts = [
        f'<text class="name" x="4" y="13">{escape(name)}</text>',
        f'<line class="base" x1="{_CELL_LEFT:.0f}" x2="{_CELL - 6:.0f}" y1="{bottom:.0f}" '
        f'y2="{bottom:.0f}"/>',
    ]
    for log, text in axes[1].ticks:
        _, (y,) = _place_cell(np.array([axes[0].low]), np.array([log]), axes)
        parts.append(
            f'<line class="grid" x1="{_CELL_LEFT:.0f}" x2="{_CELL - 6:.0f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            + _tick(text.replace(",", ""), _CELL_LEFT - 4, y + 3.5, anchor="end")
        )
    # Every other tick: a cell is half as wide as a panel.
    for log, text in axes[0].ticks[:: 1 if len(axes[0].ticks) < 5 else 2]:
        (x,), _ = _place_cell(np.array([log]), np.array([axes[1].low]), axes)
        parts.append(_tick(text, x, bottom + 14, anchor=_anchor(x, _CELL)))
    parts.append(
        f'<text class="axis" x="{(_CELL + _CELL_LEFT) / 2:.0f}" y="{_CELL - 5:.0f}" '
        f'text-anchor="middle">tokens in the answer</text>'
    )
    return parts


def _trend(row: Row, lengths: Floats, axes: tuple[LogAxis, LogAxis]) -> str:
    """Draw the median perplexity of answers of similar length."""
    if len(lengths) < 2 * _MIN_IN_BIN:
        return ""
    edges = np.quantile(lengths, np.linspace(0, 1, _NUM_LENGTH_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, lengths, side="right")
    members = [bins == number for number in range(_NUM_LENGTH_BINS)]
    members = [some for some in members if some.sum() >= _MIN_IN_BIN]
    x, y = (
        np.array([np.median(values[some]) for some in members]) for values in (lengths, row.logs)
    )
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*_place_cell(x, y, axes), strict=True))
    return f'<polyline class="halo" points="{points}"/><polyline class="trend" points="{points}"/>'


def _tick(text: str, x: float, y: float, *, anchor: str) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _anchor(x: float, width: float) -> str:
    """Hang a label inside the frame where centred it would stick out."""
    return "end" if x > width - 14 else "start" if x < 14 else "middle"


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>{escape(visible(title))}</title>{''.join(parts)}</svg>"
    )

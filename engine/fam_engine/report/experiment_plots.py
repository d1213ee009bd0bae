"""The figures of a study as inline SVG: accuracies with their intervals, and perplexity against accuracy.

In: cells of `results.json`. Out: SVG strings, all text escaped, in the style of `plots`; `standalone` gives one its own
style sheet, for a file of its own beside the Markdown report.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np

from fam_engine.report.axes import fit_axis
from fam_engine.report.evaluation_plot import Mark, interval_panel
from fam_engine.report.plots import colour_of
from fam_engine.report.wording import number, percent, short_names, visible

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420.0, 300.0, 46.0, 14.0, 12.0, 46.0
_MAX_NAME: Final = 22
_NUM_TICKS: Final = 6
_NAME_HEIGHT: Final = 13.0
# Where the upright axis may end.
_ENDS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
_COLOURS: Final = (
    *("#0072b2", "#d55e00", "#009e73", "#b85f93", "#c98a00", "#3a9bd6", "#1b1d21", "#7b818b"),
)
STYLE: Final = (
    "svg{font:11px sans-serif;background:#fdfdfb}text{fill:#5a5f68}.name{fill:#1b1d21;font-weight:600}"
    ".grid{stroke:#d9dbdd}.zero,.base{stroke:#1b1d21}.reach{stroke:currentColor;stroke-width:2}"
    ".dot{fill:currentColor}"
    + "".join(f".c{place}{{color:{colour}}}" for place, colour in enumerate(_COLOURS[:-1]))
    + f".cx{{color:{_COLOURS[-1]}}}"
)


def colours(cell: Mapping[str, Any]) -> dict[str, str]:
    """Give each variant its colour class, the same in every figure."""
    return {name: colour_of(place) for place, name in enumerate(cell["variants"])}


def accuracy_panel(cell: Mapping[str, Any], which: str, *, label: str) -> str:
    """Draw the accuracy of each variant with its interval, and that of the untrained model.

    Args:
        cell: Of the results.
        which: `in_domain` or `retention`.
        label: What the axis shows.
    """
    rows: list[tuple[str, list[Mark]]] = []
    if (mark := _base_mark(cell, which)) is not None:
        rows.append(("before training", [mark]))
    for name, colour in colours(cell).items():
        entry = cell["variants"][name][which]
        if entry is not None:
            title = f"{name}: {percent(entry['value'])}"
            low, high = entry["low"], entry["high"]
            rows.append((name, [Mark(colour, title, entry["value"], low, high)]))
    return interval_panel(rows, label=label, signed=False)


def _base_mark(cell: Mapping[str, Any], which: str) -> Mark | None:
    """Give the untrained model's accuracy; the mean over several tests has no interval here."""
    is_own = which == "in_domain"
    found = [base for task, base in cell["base"].items() if (task == cell["task"]) == is_own]
    if not found:
        return None
    value = sum(base["value"] for base in found) / len(found)
    low, high = (found[0]["low"], found[0]["high"]) if len(found) == 1 else (value, value)
    return Mark("cx", f"before training: {percent(value)}", value, low, high)


def familiarity_panel(cell: Mapping[str, Any], which: str, *, label: str) -> str:
    """Draw accuracy after training against perplexity before it, a dot a variant.

    Args:
        cell: Of the results.
        which: `in_domain` or `retention`.
        label: What the upright axis shows.
    """
    shown = {
        name: entry
        for name, entry in cell["variants"].items()
        if entry[which] is not None and entry["perplexity"]
    }
    logs = np.log([entry["perplexity"]["value"] for entry in shown.values()])
    axis = fit_axis(logs, keep_all=True)
    highest = max([entry[which]["high"] for entry in shown.values()], default=1.0)
    top = next(end for end in _ENDS if highest <= end or end == 1.0)
    parts = _upright_grid(label, top)
    for log, text in axis.ticks:
        x = _across(float(axis.place(np.array(log))))
        parts.append(_text("tick", text, x, _HEIGHT - _BOTTOM + 15, "middle"))
    parts.append(_text("axis", "perplexity before training", _across(0.5), _HEIGHT - 12, "middle"))
    heights = [_upward(entry[which]["value"], top) for entry in shown.values()]
    names = short_names(list(shown), _MAX_NAME)
    for (name, entry), log, y in zip(shown.items(), logs, _apart(heights), strict=True):
        x = _across(float(axis.place(np.array(log))))
        parts.append(_dot(name, entry, which, (x, top), colours(cell)[name]))
        # Towards the middle of the frame, where there is room for a name.
        side, anchor = (8.0, "start") if x < _WIDTH / 2 else (-8.0, "end")
        parts.append(_text("name", names[name], x + side, y + 4, anchor))
    title = f"{label} against perplexity"
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img">'
        f"<title>{escape(visible(title))}</title>{''.join(parts)}</svg>"
    )


def _upright_grid(label: str, top: float) -> list[str]:
    parts = []
    for value in np.linspace(0.0, top, _NUM_TICKS).tolist():
        y = _upward(value, top)
        parts.append(
            f'<line class="grid" x1="{_LEFT:.0f}" x2="{_WIDTH - _RIGHT:.0f}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>' + _text("tick", f"{100 * value:.4g}", _LEFT - 6, y + 4, "end")
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def _dot(
    name: str, entry: Mapping[str, Any], which: str, place: tuple[float, float], colour: str
) -> str:
    (x, top), found = place, entry[which]
    low, y, high = (_upward(found[end], top) for end in ("low", "value", "high"))
    title = f"{name}: perplexity {number(entry['perplexity']['value'])}, {percent(found['value'])}"
    return (
        f'<g class="{colour}"><title>{escape(visible(title))}</title>'
        f'<line class="reach" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )


def _apart(heights: Sequence[float]) -> list[float]:
    """Move names up or down until no two are on one line."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed = list(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + _NAME_HEIGHT)
    # Those pushed out at the bottom move up, and others before them.
    limit = _HEIGHT - _BOTTOM
    for place in reversed(order):
        placed[place] = min(placed[place], limit)
        limit = placed[place] - _NAME_HEIGHT
    return placed


def _across(place: float) -> float:
    return _LEFT + 10 + (_WIDTH - _LEFT - _RIGHT - 20) * place


def _upward(share: float, top: float) -> float:
    share = min(max(share / top, 0.0), 1.0)
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share


def _text(kind: str, text: str, x: float, y: float, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def standalone(svg: str) -> str:
    """Give an inline SVG as a file of its own."""
    opening = '<svg xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg", opening, 1).replace("<title>", f"<style>{STYLE}</style><title>", 1)

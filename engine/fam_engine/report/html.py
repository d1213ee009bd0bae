"""The report of a scoring job as one HTML file that opens offline, light or dark, narrow or wide.

In: plain data (`ReportData`). Out: the page as a string. Everything is inside: style, figures as
SVG, no script, no font, no address to fetch from; a content security policy says so to the browser.
All text passes jinja2's escaping or `html.escape`, with control characters spelled out first. Size
does not grow with the number of records or sources.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from fam_engine.report import wording
from fam_engine.report.axes import LogAxis, fit_axis
from fam_engine.report.examples import Example
from fam_engine.report.plots import Row, cloud_panels, colour_of, distribution_panel

Floats = npt.NDArray[np.float64]

MAX_CLOUDS, MAX_DOTS = 20, 2000
# Fewer answers show no relation between length and perplexity.
MIN_FOR_CLOUD = 10
MAX_TOKENS, MAX_PROMPT, MAX_QUARANTINE = 600, 1500, 20
# Bounds of the six shades: tokens the model gave at least 90, 50, 10, 1 and 0.1 %.
_SHADE_BOUNDS = tuple(-math.log(p) for p in (0.9, 0.5, 0.1, 0.01, 0.001))
SHADES = ("90 % or more", "50 to 90 %", "10 to 50 %", "1 to 10 %", "0.1 to 1 %", "below 0.1 %")


@dataclass(frozen=True)
class ReportData:
    """What a report shows.

    Attributes:
        title: Of the page; the model's name belongs here.
        summary: From `measure.summary.summarize`.
        sources: n source names, a record each.
        nll_mean: float64[n], nats a token, NaN where undefined.
        num_response_tokens: n counts.
        most_familiar: Answers to show token by token, most familiar first.
        least_familiar: The same, least familiar first.
        quarantined: Records left out, by code.
        quarantine_sample: Some of them: `file`, `line`, `code`, `reason`.
        settings: What to print of settings and versions; nested values are fine.
    """

    title: str
    summary: Mapping[str, Any]
    sources: Sequence[str]
    nll_mean: Floats
    num_response_tokens: npt.NDArray[Any]
    most_familiar: Sequence[Example] = ()
    least_familiar: Sequence[Example] = ()
    quarantined: Mapping[str, int] = field(default_factory=dict)
    quarantine_sample: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def render_report(data: ReportData) -> str:
    """Make the page; its text is valid UTF-8 whatever the records hold."""
    environment = page_environment()
    names = wording.by_familiarity(data.summary)
    return environment.get_template("report.html.jinja").render(
        data=data,
        summary=data.summary,
        names=names,
        pooled=data.summary.get("pooled"),
        pairs=_pairs(data.summary),
        judged=[name for name in names if data.summary["sources"][name]["correct"]],
        most=wording.MAX_ROWS,
        headline=wording.headline(data.summary),
        remarks=wording.remarks(data.summary),
        averages=wording.AVERAGES,
        on_request=wording.on_request(data.summary),
        missing=wording.MISSING,
        flag_meanings=wording.FLAG_MEANINGS,
        shades=SHADES,
        few=wording.FEW_GROUPS,
        quarantine_sample=data.quarantine_sample[:MAX_QUARANTINE],
        examples=[
            ("Most familiar", [_shown(example) for example in data.most_familiar]),
            ("Least familiar", [_shown(example) for example in data.least_familiar]),
        ],
        **_figures(data, names),
    )


def page_environment() -> jinja2.Environment:
    """Give what renders pages: it escapes all text, and spells out control characters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fam_engine.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: wording.visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "number": wording.number,
        "percent": wording.percent,
        "interval": wording.interval,
        "setting": _setting,
        "name": _breakable,
    }
    return environment


def _pairs(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Order the comparisons by difference, those without one last."""
    pairs = (summary["comparison"] or {"pairs": []})["pairs"]
    values = [pair["difference"]["value"] for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (values[i] is None, values[i] or 0.0))
    return [pairs[i] for i in order]


def _breakable(name: str) -> Markup:
    """Escape a name and let it break after its signs, where a reader would break it."""
    return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(wording.visible(name)))))


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shown(example: Example) -> dict[str, Any]:
    """Prepare an answer for the page: shades, titles, and cuts where it is long."""
    tokens = []
    for text, logprob, rank in list(
        zip(example.tokens, example.logprobs, example.ranks, strict=True)
    )[:MAX_TOKENS]:
        shade = bisect.bisect_left(_SHADE_BOUNDS, -logprob)
        place = "first choice" if rank == 1 else f"rank {rank}{'+' if rank >= 100 else ''}"
        title = (
            f"{max(-logprob, 0.0):.2f} nats ({100 * math.exp(min(logprob, 0.0)):.3g} %), {place}"
        )
        tokens.append((text.replace("\n", "\u21b5\n"), shade, title))
    prompt = example.prompt
    return {
        "example": example,
        "tokens": tokens,
        "num_hidden": max(0, len(example.tokens) - MAX_TOKENS),
        "prompt": prompt if len(prompt) <= MAX_PROMPT else f"{prompt[:MAX_PROMPT]} ...",
    }


def _figures(data: ReportData, names: Sequence[str]) -> dict[str, Any]:
    """Draw the figures from the records that have both a loss and a length."""
    usable = np.isfinite(data.nll_mean) & (data.num_response_tokens > 0)
    axes = fit_axis(np.log(data.num_response_tokens[usable])), fit_axis(data.nll_mean[usable])
    records: dict[str, list[int]] = {name: [] for name in names}
    for index in np.flatnonzero(usable).tolist():
        # Of sources taken together nothing is drawn.
        if data.sources[index] in records:
            records[data.sources[index]].append(index)
    drawn = _largest(records, wording.MAX_ROWS)
    clouds = _largest(records, MAX_CLOUDS)
    perplexities, lengths = _rows(data, records, drawn)
    return {
        "perplexity_panel": Markup(distribution_panel(perplexities, axes[1], label="perplexity")),
        "length_panel": Markup(
            distribution_panel(lengths, axes[0], label="length of the answer (tokens)")
        ),
        "clouds": _clouds(data, records, clouds, axes) if usable.sum() >= MIN_FOR_CLOUD else [],
        "num_outside": axes[1].num_outside,
        "num_drawn": len(drawn),
        "num_clouds": len(clouds),
        "num_dots": min(MAX_DOTS, sum(len(records[name]) for name in clouds)),
    }


def _largest(records: Mapping[str, list[int]], most: int) -> list[str]:
    """Keep the sources with the most records, in the order given."""
    sizes = sorted(
        (name for name in records if records[name]), key=lambda name: -len(records[name])
    )
    kept = set(sizes[:most])
    return [name for name in records if name in kept]


def _rows(
    data: ReportData, records: Mapping[str, list[int]], names: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """Make the rows of the two panels; a source keeps its colour in every figure."""
    perplexities, lengths = [], []
    positions = {name: position for position, name in enumerate(records)}
    for name in names:
        tokens = data.num_response_tokens[records[name]].astype(np.float64)
        median = data.summary["sources"][name]["perplexity"]["median"]
        length = {"value": float(np.median(tokens)), "low": None, "high": None}
        colour = colour_of(positions[name])
        perplexities.append(Row(name, colour, data.nll_mean[records[name]], median))
        lengths.append(Row(name, colour, np.log(tokens), length))
    return perplexities, lengths


def _clouds(
    data: ReportData,
    records: Mapping[str, list[int]],
    names: Sequence[str],
    axes: tuple[LogAxis, LogAxis],
) -> list[Markup]:
    """Draw the clouds from a random, but always the same, choice of records."""
    rows, lengths = _rows(data, records, names)
    owners = np.repeat(np.arange(len(rows)), [len(row.logs) for row in rows])
    within = np.concatenate([np.arange(len(row.logs)) for row in rows])
    generator = np.random.default_rng(0)
    kept = np.sort(generator.permutation(len(owners))[:MAX_DOTS])
    shown = [within[kept][owners[kept] == position] for position in range(len(rows))]
    panels = cloud_panels(rows, [row.logs for row in lengths], axes, shown)
    return [Markup(panel) for panel in panels]

"""The report of a study: one HTML file that opens offline, the same in Markdown, its figures as files.

In: the dictionary of `results.json`. Out: texts. HTML has the style and the safety of the scoring report (`html`): no
script, nothing fetched, all text escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import jinja2
from markupsafe import Markup

from fam_engine.report import experiment_words as words
from fam_engine.report import wording
from fam_engine.report.experiment_plots import (
    accuracy_panel,
    colours,
    familiarity_panel,
    standalone,
)
from fam_engine.report.html import page_environment

# What the settings' list need not repeat.
_TOLD: Final = ("title", "notes", "answers")
_LABELS: Final = {
    "in_domain": "accuracy on {task} after training (%)",
    "retention": "accuracy on other tasks after training (%)",
}


def render_html(results: Mapping[str, Any]) -> str:
    """Make the page."""
    environment = page_environment()
    environment.filters |= _filters()
    cells = [
        {
            "name": words.cell_name(results, cell),
            "data": cell,
            "line": words.cell_line(cell),
            "findings": words.cell_findings(cell),
            "remarks": words.cell_remarks(cell, len(results["settings"]["seeds"])),
            "colours": colours(cell),
            "panels": {which: Markup(svg) for which, svg in _panels(cell).items()},
        }
        for cell in results["cells"]
    ]
    return environment.get_template("experiment.html.jinja").render(**_common(results), cells=cells)


def render_markdown(results: Mapping[str, Any]) -> str:
    """Make the Markdown report; its figures are `plots/`, see `plot_files`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fam_engine.report", "page"),
        # Markdown, and no page: what could act in it is spelled out by `wording.plain`.
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: wording.plain(value) if type(value) is str else value,
    )
    environment.filters |= _filters()
    cells = [
        {
            "name": words.cell_name(results, cell),
            "data": cell,
            "line": words.cell_line(cell),
            "findings": words.cell_findings(cell),
            "remarks": words.cell_remarks(cell, len(results["settings"]["seeds"])),
            "plots": [f"plots/{name}" for name in _plot_names(number)],
        }
        for number, cell in enumerate(results["cells"])
    ]
    return environment.get_template("experiment.md.jinja").render(**_common(results), cells=cells)


def plot_files(results: Mapping[str, Any]) -> dict[str, str]:
    """Give the figures as files: name -> SVG."""
    return {
        name: standalone(svg)
        for number, cell in enumerate(results["cells"])
        for name, svg in zip(_plot_names(number), _panels(cell).values(), strict=False)
    }


def _plot_names(number: int) -> list[str]:
    kinds = ("accuracy", "retention", "perplexity-accuracy", "perplexity-retention")
    return [f"{number + 1}-{kind}.svg" for kind in kinds]


def _panels(cell: Mapping[str, Any]) -> dict[str, str]:
    """Draw what there is to draw."""
    task = wording.visible(cell["task"])
    labels = {which: label.format(task=task) for which, label in _LABELS.items()}
    panels = {
        f"accuracy_{which}": accuracy_panel(cell, which, label=label)
        for which, label in labels.items()
    }
    return panels | {
        f"familiarity_{which}": familiarity_panel(cell, which, label=label)
        for which, label in labels.items()
    }


def _filters() -> dict[str, Any]:
    return {
        "points": wording.points,
        "points_interval": words.points_interval,
        "origin": words.describe_origin,
        "number": wording.number,
        "percent": wording.percent,
        "percent_interval": lambda estimate: wording.interval(estimate, as_percent=True),
        "interval": wording.interval,
        "as_json": lambda value: json.dumps(value, ensure_ascii=False),
    }


def _common(results: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "results": results,
        "headline": words.headline(results),
        "intervals": words.INTERVALS,
        "caveats": words.CAVEATS,
        "foretold": {which: words.foretold(results, which) for which in ("in_domain", "retention")},
        "settings": {k: v for k, v in results["settings"].items() if k not in _TOLD},
    }

"""The report of an evaluation as one HTML file that opens offline.

In: plain data (`EvalReport`). Out: the page as a string, in the style and with the safety of the scoring report
(`html`): no script, nothing fetched, all text escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from fam_engine.report import evaluation_words as words
from fam_engine.report.evaluation_plot import Mark, interval_panel
from fam_engine.report.html import page_environment
from fam_engine.report.plots import colour_of
from fam_engine.report.wording import percent, points

MAX_DRAWN_TASKS: Final = 30
MAX_TEXT: Final = 1200
_OUTSIDE_SETTINGS: Final = ("data", "out", "adapter", "train")


@dataclass(frozen=True)
class Shown:
    """A question to look at, with what each model answered.

    Attributes:
        task: Of the question.
        id: Of the question.
        asked: Its text.
        answer: The gold answer.
        answers: Model, response (None: none) and whether it is correct.
    """

    task: str
    id: str
    asked: str
    answer: str | None
    answers: Sequence[tuple[str, str | None, bool | None]]


@dataclass(frozen=True)
class EvalReport:
    """What the report shows.

    Attributes:
        title: Of the page; the model's name belongs here.
        summary: What `summary.json` holds.
        shown: Questions to look at.
    """

    title: str
    summary: Mapping[str, Any]
    shown: Sequence[Shown] = ()


def render_evaluation(data: EvalReport) -> str:
    """Make the page; its text is valid UTF-8 whatever the records hold."""
    environment = page_environment()
    environment.filters |= {"points": points, "limits": words.limits, "clipped": _clipped}
    summary = data.summary
    names = words.names(summary)
    is_compared = len(names) > 1 and words.BASE in names
    return environment.get_template("evaluation.html.jinja").render(
        data=data,
        summary=summary,
        names=names,
        headline=words.headline(summary),
        findings=words.findings(summary),
        cautions=words.cautions(summary),
        colours={name: colour_of(position) for position, name in enumerate(names)},
        is_compared=is_compared,
        has_choices=any("logprob" in task["methods"] for task in summary["tasks"].values()),
        panel=Markup(_panel(summary, names, is_compared=is_compared)),
        num_drawn=min(MAX_DRAWN_TASKS, len(summary["tasks"])),
        settings={
            name: value
            for name, value in {**summary["settings"], **summary["key"]["versions"]}.items()
            if name not in _OUTSIDE_SETTINGS
        },
    )


def _panel(summary: Mapping[str, Any], names: Sequence[str], *, is_compared: bool) -> str:
    rows = []
    for task, entry in list(summary["tasks"].items())[:MAX_DRAWN_TASKS]:
        marks = [
            _mark(name, position, entry["models"][name], is_compared=is_compared)
            for position, name in enumerate(names)
            if not (is_compared and name == words.BASE)
        ]
        rows.append((task, [mark for mark in marks if mark is not None]))
    label = "accuracy minus that of the base model (points)" if is_compared else "accuracy (%)"
    return interval_panel(rows, label=label, signed=is_compared)


def _mark(name: str, position: int, entry: Mapping[str, Any], *, is_compared: bool) -> Mark | None:
    one = entry["versus_base"] if is_compared else entry
    value, (low, high) = one["difference" if is_compared else "accuracy"], one["interval"]
    if value is None:
        return None
    written = f"{points(value)} points" if is_compared else percent(value)
    title = f"{name}: {written} ({words.limits(one, as_points=is_compared)})"
    return Mark(colour_of(position), title, value, low, high)


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."

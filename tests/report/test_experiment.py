"""The report of a study: whole, safe, honest, for any names and any gaps."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fam_engine.measure.foretelling import foretelling
from fam_engine.measure.replay import Cell
from fam_engine.report import experiment_words as words
from fam_engine.report.experiment import plot_files, render_html, render_markdown
from fam_engine.report.experiment_terminal import print_experiment
from tests.report.test_html import HOSTILE, assert_safe


def estimate(value: float | None, reach: float = 0.1) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - reach, "high": value + reach}


def variant(name: str, perplexity: float, accuracy: float, **more: object) -> dict[str, Any]:
    measured = {
        **estimate(accuracy),
        "by_task": {"known": estimate(accuracy)},
        "by_seed": {"0": accuracy},
        "versus_base": estimate(0.1),
    }
    return {
        "control": False,
        "origin": {"style": name},
        "train": {},
        "by_model": {"read": 20, "own": 7},
        "num_scored": 19,
        "texts": {
            "n": 20,
            "characters": 50.0,
            "lines": 2.0,
            "correct": 1.0,
            "num_known": 20,
            "marks": {"A:": 1.0},
            "tokens": 30.0,
        },
        "perplexity": estimate(perplexity),
        "metrics": {"perplexity": perplexity},
        "in_domain": measured,
        "retention": measured,
        "versus_reference": {"in_domain": estimate(0.1), "retention": estimate(None)},
        "versus_candidate": {"in_domain": estimate(-0.2), "retention": estimate(None)},
        **more,
    }


def metric() -> dict[str, Any]:
    return {"regret": 0.0, "interval": [None, None], "spearman": 1.0, "named_best": 1, "p": 0.5}


@pytest.fixture
def results() -> dict[str, Any]:
    judged = {"difference": estimate(0.2), "verdict": "helps"}
    found = {
        "metrics": {"perplexity": metric()},
        "random": {"regret": 5.0, "interval": [None, None]},
        "cells": 1,
        "num_variants": [2],
        "chance_of_best": 0.5,
        "chance_of_all": 0.5,
    }
    cell = {
        "model": "tiny",
        "task": "new",
        "questions": {"new": 10, "known": 9},
        "seeds": [0],
        "diverged": [],
        "base": {"new": estimate(0.1), "known": estimate(0.5)},
        "at_equal_length": {},
        "cut": {"before training": 0.4, "plain": 0.0, "formal": 0.06},
        "variants": {"plain": variant("plain", 2.0, 0.6), "formal": variant("formal", 4.0, 0.4)},
        "dropped": {"self": "not one right answer"},
        "reference": "formal",
        "candidate": "plain",
        "verdict": {"in_domain": judged, "retention": judged},
        "confounds": [{"what": "length", "first": 50.0, "second": 100.0}],
        "training_questions": {"read": 20, "in_test": 2, "repeated": 3},
    }
    return {
        "title": "a study",
        "notes": ["one repair"],
        "rule": "the rule",
        "margin": 0.02,
        "verdict": {"in_domain": "helps", "retention": "helps"},
        "at_equal_length": None,
        "cells": [cell],
        "foretelling": {"in_domain": found, "retention": None},
        "left_out": {},
        "settings": {"answers": {"a": 1, "b": 2}, "seeds": [0], "tasks": {"new": 1}, "models": [1]},
        "environment": {"torch": "2"},
        "performance": {"seconds": 60.0},
    }


def test_page_is_safe_and_says_it_all(results: dict[str, Any]) -> None:
    page = render_html(results)
    assert_safe(page)
    for text in (
        "helped",
        "the rule",
        "+20.0",
        "one repair",
        "2 of 20 training questions",
        "3 training questions were there twice",
        "40.0 % (before training), 6.0 % (formal).",
        "length",
    ):
        assert text in page
    assert page.count("<svg") == 4


def test_hostile_names_stay_text(results: dict[str, Any]) -> None:
    (cell,) = results["cells"]
    cell["variants"] = {HOSTILE: cell["variants"]["plain"], "formal": cell["variants"]["formal"]}
    cell["candidate"], cell["task"], results["title"] = HOSTILE, HOSTILE, HOSTILE
    cell["base"] = {HOSTILE: estimate(0.1)}
    cell["questions"] = {HOSTILE: 3}
    assert_safe(render_html(results))
    markdown = render_markdown(results)
    assert "<script>" not in markdown
    for svg in plot_files(results).values():
        assert "<script>" not in svg
    print_experiment(results, Console(quiet=True))


def test_markdown_has_its_tables_and_plots(results: dict[str, Any]) -> None:
    text = render_markdown(results)
    names = re.findall(r"!\[.+?\]\((.*?)\)", text)
    assert names == [f"plots/{name}" for name in plot_files(results)]
    assert "| plain | 20 | 2.00" in text


def test_a_study_cut_short_says_so(results: dict[str, Any]) -> None:
    (cell,) = results["cells"]
    results["left_out"] = {"train": 3}
    nothing = {"in_domain": None, "retention": None, "perplexity": None}
    cell["variants"]["formal"] |= nothing
    unknown = {"difference": estimate(None), "verdict": "not measured"}
    cell["verdict"] = {"in_domain": unknown, "retention": unknown}
    for text in (render_html(results), render_markdown(results)):
        assert "3 train" in text
        assert "not measured" in text
    plot_files(results)


def test_the_verdict_is_told_with_what_else_differs(results: dict[str, Any]) -> None:
    said = " ".join(words.cell_findings(results["cells"][0]))
    assert "by the rule: helps" in said
    assert "length (50.0 against 100 characters an answer)" in said
    alike = copy.deepcopy(results["cells"][0])
    alike["confounds"] = []
    assert "differ in none of" in " ".join(words.cell_findings(alike))
    alike["candidate"] = "formal"
    assert "the question does not arise" in " ".join(words.cell_findings(alike))


def test_control_arms_are_told_against_both(results: dict[str, Any]) -> None:
    (cell,) = results["cells"]
    cell["variants"]["brief"] = variant("brief", 3.0, 0.5, control=True)
    assert (
        "Control arms on new, in points: brief +10.0 (+0.0 to +20.0) against formal, "
        "-20.0 (-30.0 to -10.0) against plain."
    ) in words.cell_findings(cell)


def test_what_is_left_at_equal_length_is_in_the_headline(results: dict[str, Any]) -> None:
    (cell,) = results["cells"]
    results["at_equal_length"] = {"in_domain": "not distinguishable", "retention": "helps"}
    cell["variants"]["brief"] = variant("brief", 3.0, 0.5, control=True)
    judged = {"difference": estimate(0.02), "verdict": "not distinguishable"}
    cell["at_equal_length"] = {"brief": {"in_domain": judged, "retention": judged}}
    assert words.headline(results).endswith(
        "Against less familiar answers of the same length no difference in what was learnt can be "
        "made out; more was kept."
    )
    assert any(
        text.startswith(
            "At equal length: plain against brief, less familiar (perplexity 3.00) and as"
        )
        for text in words.cell_findings(cell)
    )


def test_no_dot_of_the_figure_sits_on_its_frame(results: dict[str, Any]) -> None:
    (cell,) = results["cells"]
    for number, perplexity in enumerate((10.0, 10.1, 10.1, 10.1, 10.2, 10.2, 10.3, 21.7)):
        cell["variants"][f"v{number}"] = variant("formal", perplexity, 0.2)
    svg = plot_files(results)["1-perplexity-accuracy.svg"]
    places = [float(x) for x in re.findall(r'<circle class="dot" cx="([0-9.]+)"', svg)]
    # Logarithms keep their distances: 2.0, 4.0 and 21.7 with nothing cut off.
    first, second, last = places[0], places[1], places[-1]
    assert (second - first) / (last - first) == pytest.approx(0.2907, abs=0.002)


def test_several_tasks_have_a_line_each_above_and_the_rest_beside_their_tables(
    results: dict[str, Any],
) -> None:
    other = copy.deepcopy(results["cells"][0])
    other["task"], other["candidate"] = "far", "formal"
    results["cells"].append(other)
    line = "plain against formal: in domain +20.0 points, helps; on what it knew before +20.0 points, helps."
    for text in (render_html(results), render_markdown(results)):
        head, _, rest = text.partition("The rule of the verdict")
        assert line in head
        assert "formal, the reference, is itself the most familiar variant." in head
        assert "2 of 20 training questions" not in head
        assert rest.count("2 of 20 training questions") == 2
    assert render_markdown(results).count("\n- 2 of 20 training questions") == 2


def test_few_variants_are_called_few(results: dict[str, Any]) -> None:
    said = " ".join(words.foretold(results, "in_domain"))
    assert "far too few" in said
    assert "of as many that know nothing, about 0.5 would" in said
    assert "nothing to foretell" in " ".join(words.foretold(results, "retention"))


def test_luck_has_to_hold_in_every_cell(results: dict[str, Any]) -> None:
    cells = [
        Cell(
            "m", task, np.arange(count, dtype=float), {"perplexity": np.arange(count, dtype=float)}
        )
        for task, count in (("small", 2), ("large", 10))
    ]
    found = foretelling(cells, seed=0)
    assert found is not None
    results["foretelling"]["in_domain"] = found | {"metrics": dict.fromkeys("abcdef", metric())}
    said = " ".join(words.foretold(results, "in_domain"))
    # Six times 1/2 x 1/10.
    assert (
        "name the best variant in every cell; of as many that know nothing, about 0.3 would" in said
    )


def test_headlines_cover_every_verdict(results: dict[str, Any]) -> None:
    for verdict in ("helps", "hurts", "no effect", "not distinguishable", "mixed", "not measured"):
        results["verdict"] = {"in_domain": verdict, "retention": verdict}
        assert words.headline(results).endswith(".")


def test_trainings_that_diverged_are_counted(results: dict[str, Any]) -> None:
    results["cells"][0]["diverged"] = [
        {"variant": "formal", "seed": 0, "reason": "step 9: the loss is nan"}
    ]
    said = (
        "formal: 1 of 1 trainings diverged and are in no average (seed 0, step 9: the loss is nan)"
    )
    console = Console(record=True, width=400)
    print_experiment(results, console)
    for text in (render_html(results), render_markdown(results), console.export_text()):
        assert said in text

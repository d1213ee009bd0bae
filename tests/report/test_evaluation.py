from __future__ import annotations

import copy
import io
import re
from typing import Any

import pytest
from rich.console import Console

from fam_engine.report.evaluation import print_eval_forecast, print_evaluation
from fam_engine.report.evaluation_page import EvalReport, Shown, render_evaluation
from fam_engine.report.evaluation_plot import Mark, interval_panel
from fam_engine.report.evaluation_words import cautions, findings, headline


def entry(correct: int, n: int, versus: dict[str, Any] | None = None) -> dict[str, Any]:
    share = correct / n
    return {
        "n": n,
        "num_correct": correct,
        "accuracy": share,
        "interval": [max(share - 0.1, 0.0), min(share + 0.1, 1.0)],
        "failed": 0,
        "cut_by_length": 0,
        "cut_and_wrong": 0,
        "no_answer_found": 1,
        "versus_base": versus,
    }


def versus(difference: float, p: float, verdict: str) -> dict[str, Any]:
    interval = [difference - 0.05, difference + 0.05]
    counts = {"n": 100, "only_model": 3, "only_base": 2}
    return {**counts, "difference": difference, "interval": interval, "p": p, "verdict": verdict}


@pytest.fixture
def summary() -> dict[str, Any]:
    """Two tasks, a base model and an adapter: better on one, within noise on the other."""
    models = {
        "sums": {"base": entry(40, 100), "mine": entry(60, 100, versus(0.2, 0.001, "better"))},
        "options": {
            "base": entry(50, 100) | {"acc": 0.5, "acc_norm": 0.55},
            "mine": entry(49, 100, versus(-0.01, 1.0, "within noise"))
            | {"acc": 0.49, "acc_norm": 0.5},
        },
    }
    mean = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    return {
        "records": {
            "read": 203,
            "evaluated": 200,
            "quarantined": 3,
            "quarantined_by_code": {"E_NO_GOLD": 3},
            "skipped": 0,
        },
        "models": [{"name": "base", "adapter": None}, {"name": "mine", "adapter": "runs/mine"}],
        "tasks": {
            task: {"n": 100, "kinds": {"math": 100}, "methods": {"generation": 100}, "models": own}
            for task, own in models.items()
        },
        "overall": {
            "base": mean | {"versus_base": None},
            "mine": mean | {"versus_base": {"difference": 0.095, "interval": [0.02, 0.17]}},
        },
        "overlap": [],
        "settings": {
            "model": "some/model",
            "max_new_tokens": 64,
            "choice_metric": "acc",
            "data": ["d.jsonl"],
        },
        "key": {"versions": {"torch": "2"}},
    }


def printed(summary: dict[str, Any]) -> str:
    out = io.StringIO()
    print_evaluation(summary, Console(file=out, width=80))
    return out.getvalue()


def test_a_difference_within_noise_is_said_to_be_one(summary: dict[str, Any]) -> None:
    assert (
        headline(summary) == "Of 2 tasks, mine is better than the base model on 1 and worse on 0."
    )
    found = findings(summary)
    assert found[0] == (
        "mine against the base model: better on sums; within noise on options. "
        "Mean over the tasks: +9.5 points (+2.0 to +17.0)."
    )
    assert "not proof that they are equal" in found[1]
    text = printed(summary)
    assert "+20.0 better" in text
    assert "-1.0 noise" in text
    assert max(map(len, text.splitlines())) <= 80


def test_many_comparisons_are_owned_up_to(summary: dict[str, Any]) -> None:
    assert not any("by chance" in text for text in findings(summary))
    for number in range(9):
        summary["tasks"][f"more{number}"] = summary["tasks"]["options"]
    assert any("11 comparisons" in text and "0.6 of them" in text for text in findings(summary))


def test_without_a_base_model_accuracies_stand_alone(summary: dict[str, Any]) -> None:
    summary["models"] = summary["models"][:1]
    for task in summary["tasks"].values():
        del task["models"]["mine"]
    assert findings(summary) == [
        "base gets 50.0 % of the questions right, as a mean over 2 tasks (95 % interval 40.0 to 60.0 %)."
    ]
    assert headline(summary) == findings(summary)[0]
    page = render_evaluation(EvalReport("t", summary))
    assert "accuracy (%)" in page
    assert "McNemar" not in page


def test_a_task_whose_every_question_failed_has_no_part_in_the_mean(
    summary: dict[str, Any],
) -> None:
    nothing = {"accuracy": None, "interval": [None, None]}
    summary["models"] = summary["models"][:1]
    summary["tasks"]["sums"]["models"]["base"] |= nothing
    assert "as a mean over 1 of 2 tasks (95 %" in findings(summary)[0]
    assert "base" in printed(summary)
    summary["tasks"]["options"]["models"]["base"] |= nothing
    summary["overall"]["base"] |= nothing
    assert findings(summary) == ["base has no question with a verdict."]
    assert "()" not in printed(summary)


def test_a_mean_difference_that_is_not_there_is_not_told(summary: dict[str, Any]) -> None:
    nothing = {"difference": None, "interval": [None, None]}
    summary["overall"]["mine"]["versus_base"] |= nothing
    assert findings(summary)[0].endswith("within noise on options.")


def test_what_weakens_a_figure_is_said(summary: dict[str, Any]) -> None:
    assert cautions(summary) == []
    leak = {"file": "t.jsonl", "task": "sums", "n": 100, "same": 98, "similar": 1, "ids": ["a"]}
    leak |= {"read": 90, "skipped": 0}
    summary["overlap"] = [leak]
    summary["tasks"]["sums"]["models"]["mine"] |= {"cut_by_length": 7, "cut_and_wrong": 6}
    summary["tasks"]["options"]["models"]["base"]["failed"] = 2
    summary["tasks"]["options"]["n"] = 12
    said = cautions(summary)
    assert said[0].startswith(
        "98 of 100 questions of sums are also in t.jsonl, 1 more in large part: for a model trained"
    )
    assert said[1].startswith("sums, mine: 7 of 100 answers were cut at 64 tokens, 6 of them")
    assert "2 questions have no verdict" in said[2]
    assert "fewer than 30 questions" in said[3]
    summary["overlap"] = [leak | {"same": 0}]
    assert cautions(summary)[0].startswith("1 of 100 questions of sums are in large part also in")
    summary["overlap"] = [leak | {"same": 0, "similar": 0}]
    assert cautions(summary)[0] == "No question is also in t.jsonl."
    none = leak | {"same": 0, "similar": 0, "skipped": 10}
    summary["overlap"] = [none, none | {"task": "options"}]
    assert cautions(summary)[:2] == [
        "No question is also in t.jsonl.",
        "10 of 100 rows of t.jsonl hold no question that can be read, and were not compared.",
    ]


def test_many_models_are_printed_in_parts(summary: dict[str, Any]) -> None:
    for number in range(5):
        name = f"adapter-{number}"
        summary["models"].append({"name": name, "adapter": name})
        for group in (*(t["models"] for t in summary["tasks"].values()), summary["overall"]):
            group[name] = copy.deepcopy(group["mine"])
    text = printed(summary)
    assert all(f"adapter-{number}" in text for number in range(5))
    assert len(re.findall(r"task .*questions .*base", text)) == 2
    assert max(map(len, text.splitlines())) <= 80


def test_a_page_says_it_all_and_is_safe(summary: dict[str, Any]) -> None:
    summary["tasks"]["<b>sums"] = summary["tasks"].pop("sums")
    answers = [("base", "<script>alert(1)</script>\x1b[31m", False), ("mine", None, None)]
    shown = [Shown("<b>sums", "id<1>", "What & why?", "4", answers)]
    page = render_evaluation(EvalReport("What does <it> know?", summary, shown))
    page.encode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in page
    assert "<b>sums" not in page
    assert "<h2>Some questions of each task, first those on which the models differ</h2>" in page
    assert "id&lt;1&gt;" in page
    assert 'class="better"' in page
    assert 'class="worse"' not in page
    assert "no verdict" in page
    assert "E_NO_GOLD" in page
    assert "Overlap was not checked" in page
    assert not re.search(r"(src|href)=", page)


def test_both_metrics_of_choices_are_shown(summary: dict[str, Any]) -> None:
    assert "acc_norm" not in render_evaluation(EvalReport("t", summary)).split("Settings")[0]
    summary["tasks"]["options"]["methods"] = {"logprob": 100}
    page = render_evaluation(EvalReport("t", summary))
    assert "acc_norm" in page
    assert "55.0 %" in page


def test_a_figure_spans_its_intervals() -> None:
    rows = [("one", [Mark("c1", "t", -0.02, -0.31, 0.12)]), ("two <2>", [])]
    svg = interval_panel(rows, label="difference", signed=True)
    assert "two &lt;2&gt;" in svg
    assert ">-40<" in svg
    assert ">+20<" in svg
    assert 'class="zero"' in svg
    places = [float(x) for x in re.findall(r'x[12]="([\d.]+)"', svg)]
    assert min(places) >= 190
    assert max(places) <= 744
    assert "<circle" in interval_panel(
        [("all zero", [Mark("c0", "t", 0.0, 0.0, 0.0)])], label="accuracy", signed=False
    )


def test_a_forecast_is_printed() -> None:
    out = io.StringIO()
    forecast = {
        "models": ["base", "mine"],
        "tasks": {"sums": {"n": 10, "kinds": {"math": 10}, "methods": {"generation": 10}}},
        "quarantined": {"E_NO_GOLD": 2},
        "overlap": [
            {"file": "t", "read": 7, "skipped": 2}
            | {"task": "sums", "n": 10, "same": 3, "similar": 0, "ids": []}
        ],
        "prompt_tokens": 1000,
        "choice_tokens": 0,
        "most_tokens": 2560,
        "seconds": 7.0,
    }
    print_eval_forecast(forecast, Console(file=out, width=80))
    expected = ("2 models: base, mine", "sums: 10 questions", "2 E_NO_GOLD", "3 of 10", "7 s")
    for text in (*expected, "2 of 9 rows of t hold no question"):
        assert text in out.getvalue()

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fam_engine.report.selection import findings, print_selection

NONE = {"value": None, "low": None, "high": None}


def profile(value: float, correct: float | None = None) -> dict[str, Any]:
    estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
    share = None if correct is None else {"value": correct, "low": None, "high": None}
    return {"n": 1, "metric": estimate, "tokens_per_response": NONE, "correct": share}


def summary(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    names = ["first", *(name for name, _ in pairs)]
    entry = {"n": 50, "num_groups": 50, "value": 2.5, "interval": [2.0, 3.0]}
    return {
        "records": {
            "read": 1200,
            "selected": 400,
            "dropped": 799,
            "quarantined": 1,
            "dropped_by_reason": {"not_picked": 790, "incorrect": 9},
            "quarantined_by_code": {"E_JSON_SYNTAX": 1},
        },
        "choice": {
            "metric": "perplexity",
            "per": "question",
            "pick": "lowest",
            "average": "geometric mean",
        },
        "questions": {"all": 50, "with_candidates": 50, "with_a_choice": 40, "selected": 50},
        "sources": {name: {"n": 50, "candidates": 40, "selected": 20} for name in names},
        "all": profile(4.0, 0.5),
        "selected": profile(3.0),
        "comparison": {
            "first": "first",
            "pick": "lowest",
            "sources": {name: entry | {"probability_first": 0.5} for name in names},
            "pairs": [{"source": name, "verdict": verdict} for name, verdict in pairs],
        },
        "cautions": [],
        "test": [],
    } | more


def printed(given: dict[str, Any]) -> str:
    file = io.StringIO()
    print_selection(given, Console(file=file, width=80))
    return file.getvalue()


def test_what_was_selected_fits_in_80_columns() -> None:
    text = printed(summary(("other-source-with-a-long-name", "behind")))
    assert "400 of 1,200 records selected: the lowest perplexity for each question." in text
    assert "first comes first, more surely than chance would have it." in " ".join(text.split())
    for expected in ("the metric picked others", "E_JSON_SYNTAX", "3.00 (2.90 to 3.10)", "50.0 %"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_band_and_its_whole_source_are_worded() -> None:
    choice = {"metric": "ifd", "per": "source", "band": [0.25, 0.75], "average": "mean"}
    assert "ifd between its 0.25 and 0.75 quantiles of the whole source" in " ".join(
        printed(summary(choice=choice)).split()
    )


def test_sources_are_listed_as_they_would_come_first_with_a_band_too() -> None:
    given = summary(("b", "behind"))
    del given["choice"]["pick"]
    given["choice"] |= {"metric": "top1_rate", "band": [0.25, 0.75]}
    given["comparison"]["pick"] = "highest"
    given["comparison"]["sources"]["b"] |= {"value": 2.0, "probability_first": 0.1}
    rows = [line.split()[0] for line in printed(given).splitlines() if line.split()[1:2] == ["50"]]
    assert rows == ["first", "b"]


def test_what_cannot_be_told_apart_is_named() -> None:
    (alone, found) = findings(summary(("b", "not distinguishable"), ("c", "behind")))
    assert alone.startswith("10 of 50 questions had one candidate only")
    assert found.startswith("Not distinguishable: on the questions they share, first and b do not")


def test_records_without_the_metric_are_told_of() -> None:
    given = summary(("b", "behind"))
    given["records"]["dropped_by_reason"]["metric_undefined"] = 600
    assert any(
        text.startswith("600 of 1,200 records have no perplexity") for text in findings(given)
    )
    given["records"]["dropped_by_reason"]["metric_undefined"] = 6
    assert not any("have no" in text for text in findings(given))


def test_sources_with_other_questions_are_named() -> None:
    found = findings(summary(("b", "no shared questions"), ("c", "ahead")))
    assert any("b and first share no questions" in text for text in found)
    assert any("c comes before first" in text for text in found)


def test_too_many_sources_are_listed_without_a_comparison() -> None:
    sources = {f"s{n}": {"n": 1, "candidates": 1, "selected": 1} for n in range(300)}
    text = printed(summary(comparison=None, sources=sources))
    assert "and 270 more" in text


def test_rows_of_the_test_that_were_not_compared_are_told_of() -> None:
    counts = [
        {"file": "a.jsonl", "read": 5, "skipped": 0},
        {"file": "b\x1b.jsonl", "read": 1, "skipped": 10},
    ]
    text = " ".join(printed(summary(test=counts)).split())
    assert "10 of 11 rows of b\\x1b.jsonl hold no question that can be read, and were not" in text
    assert "a.jsonl" not in text


def test_cautions_come_last_and_control_characters_do_not_act() -> None:
    cautions = [
        {"code": "in_test", "count": 3, "text": "the test asks it", "ids": ["a\x1b[31m", "b"]},
        {
            "code": "same_sources",
            "count": 1,
            "text": "the same",
            "pairs": [{"sources": ["a", "b"], "num_shared": 9}],
        },
    ]
    text = printed(summary(cautions=cautions))
    assert "Caution, in_test: 3 selected records, the test asks it (such as a\\x1b[31m, b)." in text
    assert text.rstrip().endswith("the same: a and b (9 answers).")
    assert "\x1b" not in text

"""Findings say no more than the intervals carry."""

from __future__ import annotations

from typing import Any

import pytest

from fam_engine.report.wording import confinement, headline, number, remarks, short_names, visible


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (99.96, "100"),
        (12345.6, "12,346"),
        (99_999.6, "1.0e5"),
        (1.5e300, "1.5e300"),
        (-0.5, "-0.50"),
    ],
)
def test_number(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_visible() -> None:
    assert visible("a\n\tb\u00a0\u3000c") == "a\n\tb\u00a0\u3000c"
    assert visible("\x00\x7f\u202e\ud800\U000e0001") == "\\x00\\x7f\\u202e\\ud800\\U000e0001"
    # Joiners hold emoji together.
    assert visible("\U0001f468\u200d\U0001f469") == "\U0001f468\u200d\U0001f469"


def entry(value: float, *, median: float | None = None, num_groups: int = 50) -> dict[str, Any]:
    estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
    averages = ("mean", "median", "geometric_mean", "token_weighted")
    perplexity = {name: dict(estimate) for name in averages}
    if median is not None:
        perplexity["median"]["value"] = median
    return {"num_scored": num_groups, "num_groups": num_groups, "perplexity": perplexity}


def summary(
    sources: dict[str, dict[str, Any]], verdicts: dict[str, str], *, bits: float = 1.0
) -> dict[str, Any]:
    pairs = [{"source": name, "verdict": verdict} for name, verdict in verdicts.items()]
    return {
        "overall": {
            "num_scored": sum(e["num_scored"] for e in sources.values()),
            "bits_per_byte": {"value": bits},
        },
        "sources": sources,
        "comparison": {"reference": "a", "pairs": pairs} if pairs else None,
    }


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["less familiar", "less familiar"], "every other source is less familiar."),
        (["not distinguishable", "less familiar"], "it cannot be told apart from b."),
        (["not distinguishable", "not distinguishable"], "it cannot be told apart from b and c."),
        (["more familiar", "less familiar"], "yet question by question b is more familiar."),
        (["no shared questions", "less familiar"], "is open."),
    ],
)
def test_headline(verdicts: list[str], expected: str) -> None:
    sources = {"a": entry(2.0), "b": entry(2.1), "c": entry(2.2)}
    text = headline(summary(sources, dict(zip("bc", verdicts, strict=True))))
    assert text.startswith("a has the lowest perplexity of 3 sources, 2.00 (95 % interval 1.90 to ")
    assert text.endswith(expected)


def test_headline_of_one_source_and_of_none() -> None:
    text = headline(summary({"a": entry(2.0)}, {}))
    assert text == "Answers from a have a perplexity of 2.00 (95 % interval 1.90 to 2.10)."
    assert headline(summary({}, {})) == "No answer was scored."


def test_remarks_name_what_is_open() -> None:
    sources = {"a": entry(2.0), "b": entry(2.1, median=1.5, num_groups=3)}
    text = " ".join(remarks(summary(sources, {"b": "no shared questions"})))
    assert "By the median perplexity b comes first." in text
    assert "b: fewer than 20 questions" in text
    assert "b and a share no questions" in text
    assert remarks(summary({"a": entry(2.0), "b": entry(3.0)}, {"b": "less familiar"})) == []


def test_remarks_on_texts_beyond_the_model() -> None:
    (text,) = remarks(summary({"a": entry(2.0), "b": entry(3.0)}, {"b": "less familiar"}, bits=6.5))
    assert text.startswith("At 6.50 bits a byte the model foresees these texts no better than")


def test_remarks_on_sources_that_answer_fewer_questions() -> None:
    sources = {
        "a": entry(2.0, num_groups=300),
        "b": entry(3.0, num_groups=271),
        "c": entry(4.0, num_groups=45),
    }
    (text,) = remarks(summary(sources, {"b": "less familiar", "c": "less familiar"}))
    assert text.startswith("Not every source answers the same questions (at most 300; c 45), so")


def test_short_names_stay_apart() -> None:
    names = [
        "human",
        "gpt_step_by_step_while_keeping_words",
        "gpt_step_by_step_in_detail",
        "gpt_step_by_step",
    ]
    assert list(short_names(names[:1], 12).values()) == ["human"]
    # Cut at the end where that is enough, else in the middle.
    assert short_names(["human", names[1]], 12)[names[1]] == "gpt_step_by\u2026"
    short = short_names(names, 14)
    assert len(set(short.values())) == 4
    assert max(map(len, short.values())) == 14
    assert short[names[1]] == "gpt_step_by\u2026ds"
    # What neither end tells apart is numbered.
    alike = [f"{'a' * 30}{middle}{'b' * 30}" for middle in "xyz"]
    assert short_names(alike, 10, mark="..") == {
        alike[0]: "aaaaaaa..1",
        alike[1]: "aaaaaaa..2",
        alike[2]: "aaaaaaa..3",
    }
    assert short_names(["a\nb\x1b"], 20) == {"a\nb\x1b": "a\\nb\\x1b"}


def test_code_that_could_read_files_is_told_of() -> None:
    assert confinement({"judging": {}}) == []
    assert confinement({"judging": {"file_access_confined": True}}) == []
    (said,) = confinement({"judging": {"file_access_confined": False}})
    assert said.startswith("File access not confined")

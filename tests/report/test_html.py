"""The page is one whole, safe file of bounded size, for any records."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from fam_engine.measure import sources
from fam_engine.measure.summary import summarize
from fam_engine.report.html import MAX_TOKENS, ReportData, render_report

Columns = dict[str, list[Any]]
MakeColumns = Callable[[list[str], int], Columns]
MakeData = Callable[..., ReportData]
HOSTILE = '<script>alert(1)</script>\x1b[31m\u202e\ud800\x00\'" onload="x'
_VOID = {"meta", "br", "wbr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would find, and fails on elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def error(self, message: str) -> None:
        raise AssertionError(message)


def assert_safe(text: str) -> None:
    """Nothing runs, nothing is fetched, nothing hides."""
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    text.encode("utf-8")


def test_sections_and_numbers(make_columns: MakeColumns, make_data: MakeData) -> None:
    data = make_data(
        make_columns(["self", "human"], 40),
        quarantined={"E_TOO_LONG": 3},
        quarantine_sample=[{"file": "a.jsonl", "line": 7, "code": "E_TOO_LONG", "reason": "long"}],
        settings={"precision": "nf4", "max_length": None, "map": {"prompt": "q"}},
    )
    text = render_report(data)
    assert_safe(text)
    assert "self has the lowest perplexity of 2 sources" in text
    assert text.count('<figure><svg viewBox="0 0 360') == 2
    assert text.count('<figure><svg viewBox="0 0 200') == 2
    for piece in (
        "E_TOO_LONG",
        "a.jsonl:7",
        "boundary_merged",
        "nf4",
        "less familiar",
        "rank 100+",
    ):
        assert piece in text
    assert "max_length" not in text
    assert render_report(data) == text


def test_what_was_asked_for_besides_has_a_column(
    make_columns: MakeColumns, make_data: MakeData
) -> None:
    columns = make_columns(["self", "other"], 20)
    assert "after examples" not in render_report(make_data(columns))
    columns["in_context_nll_mean"] = [0.0] * 20 + [None] * 20
    page = render_report(make_data(columns))
    assert '<th scope="col">perplexity after examples</th>' in page


def test_text_from_records_cannot_act(make_columns: MakeColumns, make_data: MakeData) -> None:
    data = make_data(
        make_columns([HOSTILE, f"{HOSTILE}2"], 20),
        text=HOSTILE,
        title=HOSTILE,
        quarantined={HOSTILE: 1},
        quarantine_sample=[{"file": HOSTILE, "line": 1, "code": HOSTILE, "reason": HOSTILE}],
        settings={HOSTILE: HOSTILE, "more": {HOSTILE: [HOSTILE]}},
    )
    text = render_report(data)
    assert_safe(text)
    assert "&lt;script&gt;" in text
    assert "\\x1b[31m\\u202e\\ud800" in text


@pytest.mark.parametrize("num_sources", [1, 2, 30])
@pytest.mark.parametrize("num_questions", [1, 3, 20])
def test_any_number_of_sources_and_records(
    make_columns: MakeColumns, make_data: MakeData, num_sources: int, num_questions: int
) -> None:
    names = [f"source {i}" for i in range(num_sources)]
    assert_safe(render_report(make_data(make_columns(names, num_questions))))


def test_undefined_values(make_columns: MakeColumns, make_data: MakeData) -> None:
    columns = make_columns(["a", "b"], 15)
    for name in ("nll_sum", "nll_mean", "perplexity"):
        columns[name][3] = None
    columns["perplexity"][4], columns["nll_mean"][4] = None, 800.0
    columns["nll_sum"][4] = 800.0 * columns["num_response_tokens"][4]
    columns["num_response_tokens"][3] = 0
    text = render_report(make_data(columns))
    assert_safe(text)
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


def test_no_records(make_columns: MakeColumns, make_data: MakeData) -> None:
    text = render_report(make_data(make_columns([], 0), quarantined={"E_EMPTY": 2}))
    assert_safe(text)
    assert "No answer was scored." in text


def test_size_does_not_grow_with_records(make_columns: MakeColumns, make_data: MakeData) -> None:
    small = make_data(make_columns([f"source {i}" for i in range(12)], 400))
    # The summary is not what is tested; drawing 50 times the records is.
    large = replace(
        small,
        sources=list(small.sources) * 50,
        nll_mean=np.tile(small.nll_mean, 50),
        num_response_tokens=np.tile(small.num_response_tokens, 50),
    )
    small_size, large_size = len(render_report(small)), len(render_report(large))
    assert large_size < 1.05 * small_size
    assert large_size < 500_000


def test_of_many_sources_some_are_shown_and_the_rest_counted(
    make_columns: MakeColumns, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCES", 40)
    page = render_report(make_data(make_columns([f"source {i}" for i in range(50)], 2)))
    assert_safe(page)
    assert "<dt>sources</dt><dd>50</dd>" in page
    assert "the rest, 20 of 100 records, is taken together" in page
    for title, row_count, more in (
        ("Perplexity by source", 30, 10),
        ("Question by question", 30, 9),
        ("Familiar is not the same as right", 30, 10),
    ):
        section = page.split(f"<h2>{title}")[1].split("</section>")[0]
        rows = re.findall('<th scope="row"[^>]*>([^<]*)<', section)
        assert len([row for row in rows if row.startswith("source ")]) == row_count
        assert f"and {more} more, see summary.json" in rows
    assert '<th scope="row" title="others (10)">others (10)</th>\n<td>20</td>' in page


def test_long_answers_are_cut(make_columns: MakeColumns, make_data: MakeData) -> None:
    data = make_data(make_columns(["a"], 20))
    count = MAX_TOKENS + 5
    example = replace(
        data.most_familiar[0],
        prompt="p" * 10_000,
        tokens=["t"] * count,
        logprobs=[0.0] * count,
        ranks=[1] * count,
    )
    text = render_report(replace(data, most_familiar=[example], least_familiar=[]))
    assert "and 5 more tokens" in text
    assert "p" * 2000 not in text


def test_shades_follow_probability(make_columns: MakeColumns, make_data: MakeData) -> None:
    text = render_report(make_data(make_columns(["a"], 20)))
    # exp(-0.01) is above 90 %, exp(-3) is 5 %, exp(-9) is below 0.1 %.
    shades = [
        ("s0", "0.01 nats (99 %), first choice"),
        ("s3", "3.00 nats (4.98 %), rank 7"),
        ("s5", "9.00 nats (0.0123 %), rank 100+"),
    ]
    for shade, title in shades:
        assert f'<span class="t {shade}" title="{title}">' in text


def test_sources_with_and_without_shared_questions(
    make_columns: MakeColumns, make_data: MakeData
) -> None:
    columns = make_columns(["first", "shares", "apart"], 20)
    columns["group"][40:] = [f"other {question}" for question in range(20)]
    page = render_report(make_data(columns))
    section = page.split("Question by question")[1].split("</section>")[0]
    rows = [re.sub("<.*?>", " ", row).split() for row in section.split("<tr>")[2:]]
    assert [row[:2] for row in rows] == [["shares", "20"], ["apart", "0"]]
    assert rows[1][2:6] == ["-", "no", "shared", "questions"]


def test_a_summary_alone_is_enough(make_columns: MakeColumns) -> None:
    columns = make_columns(["a"], 5)
    data = ReportData(
        title="t",
        summary=summarize(columns, seed=0),
        sources=columns["source"],
        nll_mean=np.array(columns["nll_mean"]),
        num_response_tokens=np.array(columns["num_response_tokens"]),
    )
    assert_safe(render_report(data))


def test_too_few_wrong_answers_have_no_interval(
    make_columns: MakeColumns, make_data: MakeData
) -> None:
    columns = make_columns(["a", "b"], 40)
    columns["correct"] = [row % 40 >= 3 for row in range(80)]
    page = render_report(make_data(columns))
    section = page.split("Familiar is not the same as right")[1].split("</section>")[0]
    assert section.count("<small>3 answers</small>") == 2


def test_names_that_begin_alike_are_shown_apart(
    make_columns: MakeColumns, make_data: MakeData
) -> None:
    names = [f"gpt_step_by_step_while_keeping_the_{end}" for end in ("words", "style")]
    page = render_report(make_data(make_columns(names, 20)))
    shown = re.findall(r'class="name"[^>]*>([^<]*)<', page)
    # Two in each of two panels, and a cloud each.
    assert len(shown) == 6
    assert [len(set(shown[i : i + 2])) for i in (0, 2, 4)] == [2, 2, 2]

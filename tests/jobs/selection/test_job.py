from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.config import SelectConfig
from fam_engine.data.reading import hash_file
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.selection.job import run_select
from tests.jobs.selection.conftest import Scored, Silent, write_jsonl
from tests.jobs.training.small_job import Notes


def record(question: str, source: str, nll: float, **more: object) -> dict[str, Any]:
    return {
        "prompt": question,
        "response": f"{source} says {question}",
        "source": source,
        "score": {"nll_mean": nll} | more.pop("score", {}),
        **more,
    }


ROWS = [
    record("q1", "a", 1.0, correct=True),
    record("q1", "b", 2.0, correct=True),
    record("q2", "a", 4.0, correct=False),
    record("q2", "b", 3.0, correct=True),
    record("q3", "a", 5.0),
]


def config(data: Path, scores: Path, **more: object) -> SelectConfig:
    settings = {"data": [str(data)], "scores": scores, "out": scores.parent.parent / "out"}
    return SelectConfig.model_validate(settings | more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def select(data: Path, scores: Path, **more: object) -> tuple[Mapping[str, Any], list[str]]:
    settings = config(data, scores, **more)
    summary = run_select(settings, Silent())
    selected = lines(settings.out / "selected.jsonl")
    dropped = pq.read_table(settings.out / "dropped.parquet")
    counts = summary["records"]
    assert counts["selected"] == len(selected)
    assert counts["dropped"] == dropped.num_rows
    assert counts["quarantined"] == len(lines(settings.out / "quarantine.jsonl"))
    assert counts["read"] == sum(counts[k] for k in ("selected", "dropped", "quarantined"))
    assert json.loads((settings.out / "summary.json").read_text()) == summary
    return summary, [row["response"] for row in selected]


def test_the_lowest_answer_to_each_question_comes_out_as_it_went_in(scored: Scored) -> None:
    data, scores = scored(ROWS)
    summary, responses = select(data, scores)
    assert responses == ["a says q1", "b says q2", "a says q3"]
    first = lines(scores.parent.parent / "out" / "selected.jsonl")[0]
    by = first.pop("provenance")["selected_by"]
    assert by == {"metric": "perplexity", "per": "question", "pick": "lowest", "value": by["value"]}
    assert by["value"] == pytest.approx(2.718281828)
    assert first.pop("id") == f"{data}:1"
    assert first == {k: v for k, v in ROWS[0].items() if k != "score"}
    assert summary["questions"] == {
        "all": 3,
        "with_candidates": 3,
        "with_a_choice": 2,
        "selected": 3,
    }
    assert summary["sources"]["b"] == {"n": 2, "candidates": 2, "selected": 1}
    dropped = pq.read_table(scores.parent.parent / "out" / "dropped.parquet")
    assert dropped.column_names == ["id", "reason"]
    assert dropped.to_pylist()[0] == {"id": f"{data}:2", "reason": "not_picked"}


def test_a_whole_source_is_chosen_and_its_rivals_are_judged(scored: Scored) -> None:
    shift = {"a": 0.0, "b": 0.1}
    rows = [record(f"q{n}", s, 2.0 + shift[s] + n % 7) for n in range(60) for s in "ab"]
    rows += [record(f"q{n}", "c", 2.01 + n % 2 - 0.5 + n % 7) for n in range(60)]
    data, scores = scored(rows)
    summary, responses = select(data, scores, per="source")
    assert len(responses) == 60
    assert {response.split()[0] for response in responses} == {"a"}
    first, metric = summary["comparison"]["sources"]["a"], summary["selected"]["metric"]
    assert [first["value"], *first["interval"]] == [
        metric[name] for name in ("value", "low", "high")
    ]
    verdicts = {pair["source"]: pair["verdict"] for pair in summary["comparison"]["pairs"]}
    assert verdicts == {"b": "behind", "c": "not distinguishable"}


def test_constraints_and_their_reasons(scored: Scored) -> None:
    data, scores = scored(ROWS)
    summary, responses = select(data, scores, correct_only=True, quota={"b": 1})
    assert responses == ["a says q1", "b says q2"]
    assert summary["records"]["dropped_by_reason"] == {
        "incorrect": 1,
        "correctness_unknown": 1,
        "not_picked": 1,
    }


def test_a_share_of_right_answers_is_not_surer_where_all_are(scored: Scored) -> None:
    data, scores = scored([record(f"q{n}", "a", 1.0, correct=True) for n in range(40)])
    summary, _ = select(data, scores)
    # Wilson's interval of 40 of 40, from Brown, Cai and DasGupta 2001: n / (n + z^2).
    assert summary["selected"]["correct"] == {
        "value": 1.0,
        "low": pytest.approx(40 / (40 + 1.959964**2)),
        "high": 1.0,
    }


def test_a_metric_whose_highest_is_familiar_keeps_that_with_a_band(scored: Scored) -> None:
    rows = [
        record(f"q{n}", source, 1.0, score={"top1_rate": rate})
        for n in range(8)
        for source, rate in (("a", 0.9), ("b", 0.5))
    ]
    data, scores = scored(rows)
    summary, _ = select(data, scores, metric="top1_rate", band=(0.0, 0.5))
    assert (summary["comparison"]["pick"], summary["comparison"]["first"]) == ("highest", "a")


def test_constraints_that_leave_nothing_are_refused(scored: Scored) -> None:
    data, scores = scored(ROWS[4:])
    with pytest.raises(UsageError, match="1 correctness_unknown"):
        select(data, scores, correct_only=True)
    assert not (scores.parent.parent / "out" / "selected.jsonl").exists()


def test_a_dry_run_chooses_and_writes_nothing(scored: Scored, silent: Silent) -> None:
    data, scores = scored(ROWS)
    settings = config(data, scores)
    summary = run_select(settings, silent, dry_run=True)
    assert summary["records"]["selected"] == 3
    assert not settings.out.exists()
    assert run_select(settings, silent) == summary


def test_bad_and_unscored_records_are_quarantined(scored: Scored) -> None:
    data, scores = scored(ROWS, skip=[2])
    with data.open("a") as file:
        file.write('not json\n{"prompt": "q", "response": ""}\n')
    summary, _ = select(data, scores)
    assert summary["records"]["quarantined_by_code"] == {
        "E_TOO_LONG": 1,
        "E_JSON_SYNTAX": 1,
        "E_EMPTY_RESPONSE": 1,
    }
    rows = lines(scores.parent.parent / "out" / "quarantine.jsonl")
    assert [row["line"] for row in rows] == [2, 6, 7]


def test_an_undefined_metric_drops_and_an_overflown_one_ranks_last(scored: Scored) -> None:
    rows = [
        record("q1", "a", 800.0),
        record("q1", "b", 2.0),
        record("q2", "a", 1.0, score={"nll_mean": None}),
    ]
    data, scores = scored(rows)
    summary, responses = select(data, scores)
    assert responses == ["b says q1"]
    assert summary["records"]["dropped_by_reason"] == {"metric_undefined": 1, "not_picked": 1}


# -- the join ---------------------------------------------------------------------------------------


def refused(data: Path, scores: Path, **more: object) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        select(data, scores, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(")")
    return message


def test_a_response_that_changed_is_refused_by_line(scored: Scored) -> None:
    data, scores = scored(ROWS)
    changed = [*ROWS[:3], ROWS[3] | {"response": "another text"}, ROWS[4]]
    write_jsonl(data, changed)
    message = refused(data, scores)
    assert f"{data}:4: has the response length in bytes 12" in message
    assert "score it again" in message


def test_lines_that_changed_places_are_refused(scored: Scored) -> None:
    rows = [record(f"q{n}", "a", float(n)) for n in range(5)]
    data, scores = scored(rows)
    write_jsonl(data, rows[::-1])
    message = refused(data, scores)
    assert f"{data}:1: has another prompt or response than what was scored" in message
    assert "score it again" in message


@pytest.mark.parametrize("change", [{"response": "a says q9"}, {"prompt": "q9"}])
@pytest.mark.parametrize("ids", [False, True])
def test_a_text_of_the_same_length_that_changed_is_refused(
    scored: Scored, tmp_path: Path, change: dict[str, str], ids: bool
) -> None:
    rows = [row | {"id": f"r{n}"} if ids else row for n, row in enumerate(ROWS)]
    data, scores = scored(rows)
    rows[2] = rows[2] | change
    assert f"{data}:3: has another prompt or" in refused(write_jsonl(data, rows), scores)
    if ids:
        moved = write_jsonl(tmp_path / "moved.jsonl", rows[::-1])
        assert f"{moved}:3: has another prompt or" in refused(moved, scores)


def test_labels_may_change_after_scoring(scored: Scored) -> None:
    data, scores = scored(ROWS)
    write_jsonl(data, [row | {"correct": True, "judged": "by hand"} for row in ROWS])
    _, responses = select(data, scores, correct_only=True)
    assert responses == ["a says q1", "b says q2", "a says q3"]


def as_earlier(data: Path, scores: Path) -> None:
    """Leave what an earlier release left: no digests, but the hashes of the files."""
    pq.write_table(pq.read_table(scores).drop_columns(["text_digest"]), scores)
    summary = {"settings": {"data": [str(data)]}, "key": {"data": [hash_file(data)]}}
    scores.with_name("summary.json").write_text(json.dumps(summary))


def test_of_scores_without_digests_the_files_must_be_what_they_were(
    scored: Scored, tmp_path: Path
) -> None:
    rows = [record(f"q{n}", "a", float(n)) for n in range(3)]
    data, scores = scored(rows)
    as_earlier(data, scores)
    _, responses = select(data, scores)
    assert len(responses) == 3
    (tmp_path / "elsewhere").mkdir()
    for place in (data, tmp_path / "elsewhere" / "data.jsonl"):
        write_jsonl(place, rows[::-1])
        message = refused(place, scores)
        assert f"{place}: is not the file that was scored, to the last byte" in message
        assert "score it again" in message


def test_scores_without_digests_are_joined_by_id_in_any_order(
    scored: Scored, tmp_path: Path
) -> None:
    rows = [row | {"id": f"r{n}"} for n, row in enumerate(ROWS)]
    data, scores = scored(rows)
    as_earlier(data, scores)
    moved = write_jsonl(tmp_path / "moved.jsonl", rows[::-1])
    _, responses = select(moved, scores)
    assert responses == ["a says q3", "b says q2", "a says q1"]


def test_an_id_that_changed_is_refused(scored: Scored) -> None:
    data, scores = scored([row | {"id": f"r{n}"} for n, row in enumerate(ROWS)])
    write_jsonl(data, [row | {"id": f"r{4 - n}"} for n, row in enumerate(ROWS)])
    assert f"{data}:1: has the id r4, what was scored had r0" in refused(data, scores)


def test_more_or_fewer_records_than_scores_are_refused(scored: Scored) -> None:
    data, scores = scored(ROWS)
    write_jsonl(data, [*ROWS, record("q4", "a", 1.0)])
    assert f"{data}:6: has no score" in refused(data, scores)
    write_jsonl(data, ROWS[:3])
    message = refused(data, scores)
    assert f"holds 2 scores without a record in --data, the first of {data}:4" in message
    assert "every file that was scored" in message


def test_with_a_limit_the_rest_of_the_scores_is_not_missed(scored: Scored) -> None:
    data, scores = scored(ROWS)
    summary, responses = select(data, scores, limit=2)
    assert responses == ["a says q1"]
    assert summary["records"]["read"] == 2


def test_a_file_that_moved_is_joined_by_id_in_any_order(scored: Scored, tmp_path: Path) -> None:
    rows = [row | {"id": f"r{n}"} for n, row in enumerate(ROWS)]
    _, scores = scored(rows)
    moved = write_jsonl(tmp_path / "moved.jsonl", rows[::-1])
    _, responses = select(moved, scores)
    assert responses == ["a says q3", "b says q2", "a says q1"]


def test_ids_that_cannot_join_are_refused(scored: Scored, tmp_path: Path) -> None:
    _, scores = scored(ROWS)
    moved = write_jsonl(tmp_path / "moved.jsonl", ROWS)
    assert "was not scored under this path" in refused(moved, scores)

    rows = [row | {"id": "same"} for row in ROWS]
    _, scores = scored(rows)
    moved = write_jsonl(tmp_path / "moved.jsonl", rows)
    assert "`same` is not unique in the scores" in refused(moved, scores)


def test_a_copy_of_scored_records_cannot_use_their_scores_twice(
    scored: Scored, tmp_path: Path, silent: Silent
) -> None:
    rows = [row | {"id": f"r{n}"} for n, row in enumerate(ROWS)]
    data, scores = scored(rows)
    copy = write_jsonl(tmp_path / "copy.jsonl", rows)
    settings = SelectConfig(data=(str(data), str(copy)), scores=scores, out=tmp_path / "out")
    with pytest.raises(InputError, match="holds 2 records of it"):
        run_select(settings, silent)
    settings = SelectConfig(data=(str(data), str(data)), scores=scores, out=tmp_path / "out")
    with pytest.raises(InputError, match="is the same file as"):
        run_select(settings, silent)


def test_a_path_may_be_spelled_another_way(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scores = scored(ROWS)
    monkeypatch.chdir(tmp_path)
    _, responses = select(Path("./data.jsonl"), scores)
    assert len(responses) == 3


def test_a_file_without_ids_is_known_by_its_name_in_another_folder(
    scored: Scored, tmp_path: Path
) -> None:
    _, scores = scored(ROWS, skip=[1])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    moved = write_jsonl(folder / "data.jsonl", ROWS)
    summary, responses = select(moved, scores)
    assert responses == ["b says q1", "b says q2", "a says q3"]
    assert summary["records"]["quarantined"] == 1
    write_jsonl(moved, [*ROWS[:4], record("q3", "a", 5.0, response="another answer")])
    assert "response length in bytes" in refused(moved, scores)


def test_two_files_of_one_name_are_not_told_apart_by_it(scored: Scored, tmp_path: Path) -> None:
    data, scores = scored(ROWS)
    moved = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        moved.append(write_jsonl(tmp_path / name / "data.jsonl", ROWS))
    settings = SelectConfig(data=tuple(map(str, moved)), scores=scores, out=tmp_path / "out")
    with pytest.raises(InputError, match="not scored under this path") as caught:
        run_select(settings, Silent())
    assert f"give --data what was scored ({data})" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"metric": "ifd"}, "score the records again with --ifd"),
        ({"metric": "in_context_perplexity"}, "again with --in-context K"),
        ({"metric": "perplexty"}, "did you mean `perplexity`?"),
        ({"quota": {"aa": 1}}, "no record has; did you mean `a`?"),
        ({"pick": "lowest", "band": (0.0, 0.5)}, "give one of them"),
        ({"quota": {"z": 1}}, "(the sources are a, b)"),
        ({"per": "all"}, "give --budget, --quota or --band"),
        ({"max_share": 0.4}, "raise --max-share"),
        ({"min_tokens": 9, "max_tokens": 8}, "is above"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(
    scored: Scored, more: dict[str, Any], named: str
) -> None:
    data, scores = scored(ROWS)
    with pytest.raises((InputError, UsageError)) as caught:
        select(data, scores, **more)
    assert named in str(caught.value)


def test_what_left_nothing_is_named_with_its_own_remedy(scored: Scored) -> None:
    unknown = [record("q1", "a", 1.0), record("q2", "a", 2.0)]
    data, scores = scored(unknown)
    assert "have it there, or leave the flag out" in refused(data, scores, correct_only=True)
    assert "loosen the limits" in refused(data, scores, min_tokens=1_000)
    undefined = [{**record("q1", "a", 1.0), "score": {"eos_nll": None}}]
    data, scores = scored(undefined)
    assert "choose another --metric" in refused(data, scores, metric="eos_nll")


def test_a_choice_of_nothing_is_refused(scored: Scored) -> None:
    data, scores = scored(ROWS[:4])
    said = refused(data, scores, band=(0.4, 0.6))
    assert "no record is selected: 4 not_picked" in said
    assert "widen --band: of two answers to a question, one is at 0.25" in said
    assert not (scores.parent.parent / "out" / "selected.jsonl").exists()
    assert "raise --quota" in refused(data, scores, quota={"a": 0, "b": 0})
    # What was left out before the choice has no part in it.
    wrong = [record("q2", name, 1.0, correct=False) for name in "abc"]
    data, scores = scored([*ROWS[:2], *wrong])
    said = refused(data, scores, band=(0.4, 0.6), correct_only=True)
    assert "no record is selected: 2 not_picked" in said
    assert "widen --band" in said


def test_of_many_sources_some_are_named_and_the_rest_counted(scored: Scored) -> None:
    data, scores = scored([record("q", name, 1.0) for name in "abcdefghij"])
    assert "g, h and 2 others)" in refused(data, scores, quota={"z": 1})


def test_what_is_no_scores_table_is_refused(scored: Scored, tmp_path: Path) -> None:
    data, scores = scored(ROWS)
    assert f"give {scores}" in refused(data, scores.parent, out=tmp_path / "o")
    assert "does not exist" in refused(data, tmp_path / "no.parquet")
    assert "does not read as a scores table" in refused(data, data)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    assert "has no column `file`" in refused(data, other)


def test_a_selection_that_failed_leaves_its_folder_free(
    scored: Scored, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.jobs.selection import job

    data, scores = scored(ROWS)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_dropped", broken)
        with pytest.raises(ZeroDivisionError):
            run_select(config(data, scores), silent)
    _, responses = select(data, scores, budget=2)
    assert len(responses) == 2


def test_the_folder_of_the_scores_and_other_selections_are_safe(scored: Scored) -> None:
    data, scores = scored(ROWS)
    assert "choose another --out" in refused(data, scores, out=scores.parent)
    select(data, scores)
    select(data, scores)
    assert "budget = null, this one has 2" in refused(data, scores, budget=2)


def test_files_of_two_forms_are_refused(scored: Scored, tmp_path: Path, silent: Silent) -> None:
    data, scores = scored(ROWS)
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "q", "answer": "a"}\n')
    settings = SelectConfig(data=(str(data), str(other)), scores=scores, out=tmp_path / "out")
    with pytest.raises(InputError, match="which has one form"):
        run_select(settings, silent)


# -- what is written, what is warned of ---------------------------------------------------------------


def test_columns_come_out_as_they_were_or_as_mapped(scored: Scored, tmp_path: Path) -> None:
    rows = [record("q1", "a", 1.0, tags=["x", None, {"y": 1.5}], id="\u00e9\u4e2d")]
    rows[0]["provenance"] = {"method": "rewrite", "attempt": 2}
    data, scores = scored(rows)
    renamed = [{"text": row["response"], **row} for row in rows]
    for row in renamed:
        del row["response"]
    write_jsonl(data, renamed)
    _, responses = select(data, scores, map={"response": "text"})
    assert responses == ["a says q1"]
    (written,) = lines(tmp_path / "out" / "selected.jsonl")
    assert "text" not in written
    assert written["tags"] == ["x", None, {"y": 1.5}]
    assert written["id"] == "\u00e9\u4e2d"
    assert written["provenance"].keys() == {"method", "attempt", "selected_by"}


@pytest.mark.parametrize("earlier", ["by hand", ["a", "b"], 0, False])
def test_a_provenance_that_is_no_object_is_kept(
    scored: Scored, tmp_path: Path, earlier: object
) -> None:
    data, scores = scored([record("q1", "a", 1.0, provenance=earlier)])
    select(data, scores)
    (written,) = lines(tmp_path / "out" / "selected.jsonl")
    assert written["provenance"].keys() == {"original", "selected_by"}
    assert written["provenance"]["original"] == earlier


def test_parquet_comes_out_as_json_lines(scored: Scored, tmp_path: Path, silent: Silent) -> None:
    import datetime

    data, scores = scored(ROWS[:1])
    extra = {"day": [datetime.date(2024, 2, 29)], "x": [float("nan")], "l": [[float("inf"), 1.0]]}
    parquet = tmp_path / "data.parquet"
    rows = [{k: v for k, v in row.items() if k != "score"} for row in ROWS[:1]]
    table = pa.Table.from_pylist([row | {"id": f"{data}:1"} for row in rows])
    for name, values in extra.items():
        table = table.append_column(name, pa.array(values))
    of_map = pa.array([[("k", float("nan"))]], pa.map_(pa.string(), pa.float64()))
    table = table.append_column("m", of_map)
    pq.write_table(table, parquet)
    run_select(config(parquet, scores), silent)
    (written,) = lines(tmp_path / "out" / "selected.jsonl")
    assert (written["day"], written["x"], written["l"]) == ("2024-02-29", None, [None, 1.0])
    assert written["m"] == [["k", None]]

    pq.write_table(table.append_column("image", pa.array([b"\xff"])), parquet)
    with pytest.raises(InputError, match="holds bytes, which JSON cannot hold") as caught:
        run_select(config(parquet, scores, out=tmp_path / "out2"), silent)
    assert f"{parquet}:1" in str(caught.value)
    assert [p.name for p in (tmp_path / "out2").iterdir()] == [".fam-engine"]


def test_an_id_that_is_nan_is_no_id(scored: Scored, tmp_path: Path) -> None:
    _, scores = scored(ROWS, name="data.parquet")
    columns = {name: [row[name] for row in ROWS] for name in ("prompt", "response", "source")}
    parquet = tmp_path / "data.parquet"
    pq.write_table(pa.table({**columns, "id": [float("nan")] * len(ROWS)}), parquet)
    select(parquet, scores)
    first, *_ = lines(tmp_path / "out" / "selected.jsonl")
    assert first["id"] == f"{parquet}:1"


def test_a_selected_file_serves_as_data_again(scored: Scored, tmp_path: Path) -> None:
    data, scores = scored(ROWS)
    select(data, scores)
    _, responses = select(
        tmp_path / "out" / "selected.jsonl", scores, limit=3, out=tmp_path / "out2"
    )
    assert responses == ["a says q1", "b says q2", "a says q3"]


def cautions(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {caution["code"]: caution for caution in summary["cautions"]}


def test_duplicates_cuts_and_test_questions_are_warned_of(scored: Scored, tmp_path: Path) -> None:
    long = "Here stand fourteen words that a test asks too before the question itself turns"
    rows = [
        record("What is 1 + 1?", "a", 1.0),
        record(f"{long} up", "a", 1.0),
        record("Who?", "a", 1.0, score={"flags": ["prompt_cut", "boundary_merged"]}),
        record("How?", "a", 1.0, provenance={"finish_reason": "length"}),
        record("Why?", "a", 1.0, score={"flags": ["prompt_cut"]}),
    ]
    rows += [row | {"source": "b"} for row in rows]
    data, scores = scored(rows)
    test = tmp_path / "test.jsonl"
    test.write_text('{"question": "what is 1+1"}\n{"prompt": "Where?", "response": "x"}\nbad\n')
    with test.open("a") as file:
        file.write(json.dumps({"prompt": f"{long} out."}) + "\n")
    summary, _ = select(data, scores, per="all", band=(0.0, 1.0), test=(str(test),))
    found = cautions(summary)
    assert {code: caution["count"] for code, caution in found.items()} == {
        "duplicate_text": 5,
        "in_test": 2,
        "near_test": 2,
        "response_cut": 2,
        "prompt_cut": 4,
        "same_sources": 1,
    }
    assert found["in_test"]["ids"] == [f"{data}:1", f"{data}:6"]
    assert summary["test"] == [{"file": str(test), "read": 3, "skipped": 1}]
    assert found["same_sources"]["pairs"] == [{"sources": ["a", "b"], "num_shared": 5}]


def test_nothing_to_warn_of(scored: Scored) -> None:
    data, scores = scored(ROWS)
    summary, _ = select(data, scores)
    assert (summary["cautions"], summary["test"]) == ([], [])


def test_a_test_file_without_questions_is_refused(scored: Scored, tmp_path: Path) -> None:
    data, scores = scored(ROWS)
    test = tmp_path / "test.jsonl"
    test.write_text('{"answer": "x"}\n')
    with pytest.raises(InputError, match="holds no questions"):
        select(data, scores, test=(str(test),))


def test_files_beside_the_scores_that_are_others_are_refused(scored: Scored) -> None:
    data, scores = scored(ROWS)
    for name, text in (("quarantine.jsonl", "[]\n"), ("summary.json", "[]"), ("summary.json", "{")):
        beside = scores.with_name(name)
        beside.write_text(text)
        assert f"{beside}: does not read as what `score` leaves" in refused(data, scores)
        beside.unlink()


def test_a_column_that_no_row_has_is_told(scored: Scored) -> None:
    data, scores = scored(ROWS)
    notes = Notes()
    run_select(config(data, scores, map={"correct": "corect"}), notes)
    (told,) = [note for note in notes.notes if note.startswith("--map")]
    assert told.endswith("has a column `corect`; did you mean `correct`?")

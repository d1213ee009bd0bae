from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.comparing.job import compare_runs
from fam_engine.jobs.evaluation.files import SAMPLES_SCHEMA
from fam_engine.jobs.evaluation.models import BASE
from fam_engine.jobs.evaluation.samples import Sample
from fam_engine.jobs.evaluation.summary import summarize
from fam_engine.jobs.scoring.files import scores_schema, write_table
from fam_engine.measure.replay import spearman
from fam_engine.measure.statistics import ratio_estimate, resample_groups

Write = Callable[..., Path]


@pytest.fixture
def scored(tmp_path: Path) -> Write:
    """Write what a score run leaves: (id, source, group, nll_mean) a row, and (file, line) of each."""

    def write(
        name: str,
        rows: Sequence[tuple[str, str, str, float | None]],
        places: Sequence[tuple[str, int]] | None = None,
        hashes: Sequence[str] = (),
        **settings: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        schema = scores_schema(ifd=False, in_context=False)
        blank = dict.fromkeys(schema.names)
        write_table(
            folder / "scores.parquet",
            schema,
            (
                blank
                | {
                    "file": file,
                    "line": line,
                    "id": one,
                    "source": source,
                    "group": group,
                    "nll_mean": nll,
                    "bits_per_byte": None if nll is None else 2 * nll,
                }
                for (one, source, group, nll), (file, line) in zip(
                    rows, places or [("data.jsonl", n + 1) for n in range(len(rows))], strict=True
                )
            ),
        )
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "settings": {"out": name, **settings},
                    "key": {"model": settings["model"], "data": hashes},
                }
            )
        )
        return folder

    return write


ROWS = [(f"{q}/{s}", s, f"q{q}", 1.0 + 0.1 * q) for q in range(30) for s in ("human", "gpt")]


def test_figures_are_those_of_the_statistics(scored: Write) -> None:
    noise = np.random.default_rng(0).normal(0.2, 0.1, len(ROWS))
    moved = [(*row[:3], row[3] + noise[i]) for i, row in enumerate(ROWS)]
    first, second = scored("a", ROWS, model="m"), scored("b", moved[::-1], model="m")
    found = compare_runs(first, second, seed=3)
    assert found["joined"] == 60
    groups = np.repeat(np.arange(30), 2)
    truth = ratio_estimate(resample_groups(groups, seed=3), noise, np.ones(60))
    figures = found["overall"]["metrics"]["nll_mean"]
    assert figures["difference"] == pytest.approx(vars(truth))
    assert figures["verdict"] == "higher"
    assert figures["second"] - figures["first"] == pytest.approx(noise.mean())
    assert found["overall"]["num_groups"] == 30
    assert found["sources"]["gpt"]["metrics"]["nll_mean"]["difference"]["value"] == pytest.approx(
        noise[1::2].mean()
    )
    old = np.array([row[3] for row in ROWS])
    assert found["rank_correlation"]["nll_mean"] == pytest.approx(spearman(old, old + noise))
    most = int(np.argmax(np.abs(noise)))
    assert found["changed"][0]["id"] == ROWS[most][0]
    assert len(found["changed"]) == 10
    assert found["settings"] == {}
    reverse = compare_runs(second, first)["overall"]["metrics"]["nll_mean"]
    assert reverse["verdict"] == "lower"


def test_a_run_is_equal_to_itself(scored: Write) -> None:
    folder = scored("a", ROWS, model="m")
    found = compare_runs(folder, folder / "scores.parquet")
    assert found["overall"]["metrics"]["nll_mean"]["verdict"] == "equal"
    assert found["changed"] == []
    assert found["rank_correlation"]["bits_per_byte"] == pytest.approx(1.0)


def test_a_setting_that_one_run_decided_is_named_once(scored: Write) -> None:
    runs = [scored(name, ROWS, model=name, compute_dtype=name) for name in ("auto", "bf16")]
    for folder, dtype in zip(runs, ("fp32", "bf16"), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        summary["key"] = {"model": f"{dtype}-hash", "compute_dtype": dtype}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert compare_runs(*runs)["settings"] == {
        "model": ["auto", "bf16"],
        "compute_dtype": ["auto", "bf16"],
        "key.model": ["fp32-hash", "bf16-hash"],
    }


def test_records_in_one_only_repeated_ids_and_missing_values(scored: Write) -> None:
    twice = [("x", "s", "g0", 1.0), ("x", "s", "g1", 2.0), ("y", "s", "g2", None)]
    first = scored("a", [*twice, ("old", "s", "g3", 1.0)], model="m")
    second = scored(
        "b", [("x", "s", "h", 1.5), ("x", "s", "i", 3.0), ("y", "s", "j", 4.0)], model="n"
    )
    found = compare_runs(first, second)
    assert found["joined"] == 3
    assert found["only"] == [{"n": 1, "ids": ["old"]}, {"n": 0, "ids": []}]
    assert found["runs"][0]["num_repeated"] == 2
    # The `x` of line 2 belongs to that of line 2; `y` has no value to compare.
    assert [row["difference"] for row in found["changed"]] == [1.0, 0.5]
    assert found["overall"]["metrics"]["nll_mean"]["n"] == 2
    assert found["settings"] == {"model": ["m", "n"]}


def samples(source: str, file: str, values: Sequence[float]) -> tuple[list[Any], list[Any]]:
    """Give rows and places of answers to one question, of one id."""
    rows = [("q", source, "g", value) for value in values]
    return rows, [(file, n + 1) for n in range(len(rows))]


def test_answers_to_one_id_are_told_apart_by_source(scored: Write) -> None:
    (human, of_human), (gpt, of_gpt) = (
        samples("human", "human.jsonl", [1.0]),
        samples("gpt", "gpt.jsonl", [5.0]),
    )
    first = scored("a", human + gpt, of_human + of_gpt, model="m")
    turned = compare_runs(first, scored("b", gpt + human, of_gpt + of_human, model="m"))
    assert (turned["joined"], turned["changed"]) == (2, [])
    # Files put together: source tells what file and line do not.
    merged = scored("c", gpt + human, [("all.jsonl", 1), ("all.jsonl", 2)], model="m")
    assert compare_runs(first, merged)["changed"] == []
    alone = scored("d", gpt, of_gpt, model="m")
    for runs, human_rows in (((first, alone), [1, 0]), ((alone, first), [0, 1])):
        found = compare_runs(*runs)
        assert list(found["sources"]) == ["gpt"]
        assert found["changed"] == []
        assert [one["n"] for one in found["unpaired"]] == human_rows
        assert [one["n"] for one in found["only"]] == [0, 0]


@pytest.mark.parametrize("file", ["data.jsonl", "./data.jsonl", "moved/data.jsonl"])
def test_a_sample_that_was_left_out_does_not_shift_the_others(scored: Write, file: str) -> None:
    rows, places = samples("k", "data.jsonl", [1.0, 2.0, 3.0])
    rest, places_of_rest = samples("k", file, [1.0, 2.0, 3.0])
    found = compare_runs(
        scored("a", rows, places, model="m"),
        scored("b", rest[1:], places_of_rest[1:], model="m"),
    )
    assert (found["joined"], found["changed"]) == (2, [])
    assert found["unpaired"] == [{"n": 1, "ids": ["q"]}, {"n": 0, "ids": []}]


def test_a_file_is_the_same_though_its_label_is_another(scored: Write) -> None:
    # Of two files of one name the source has the folder too.
    (one, of_one), (two, of_two) = (
        samples(f"{folder}/answers", f"{folder}/answers.jsonl", [value])
        for folder, value in (("m1", 1.0), ("m2", 2.0))
    )
    both = scored("a", one + two, of_one + of_two, model="m")
    found = compare_runs(
        both, scored("b", *samples("answers", "m2/answers.jsonl", [2.0]), model="m")
    )
    assert (found["joined"], found["changed"]) == (1, [])
    # A third of that name is neither.
    third = scored("c", *samples("answers", "m3/answers.jsonl", [1.0]), model="m")
    with pytest.raises(InputError, match="`q` are in both but repeat"):
        compare_runs(both, third)


def test_rows_that_nothing_tells_apart_are_not_paired(scored: Write, tmp_path: Path) -> None:
    rows = [("q", "s", "g", 1.0), ("q", "s", "g", 2.0), ("x", "s", "h", 3.0)]
    twice = [("a.jsonl", 1), ("a.jsonl", 1), ("a.jsonl", 2)]
    first = scored("a", rows, twice, model="m")
    # A table that does not say where its rows are from is compared as far as ids tell.
    bare = tmp_path / "bare" / "scores.parquet"
    bare.parent.mkdir()
    pq.write_table(pq.read_table(first / "scores.parquet").drop_columns(["file", "line"]), bare)
    for second in (first, bare):
        found = compare_runs(first, second)
        assert found["joined"] == 1
        assert found["unpaired"] == [{"n": 2, "ids": ["q", "q"]}] * 2


def test_an_id_that_nobody_wrote_is_known_by_its_place(scored: Write) -> None:
    rows = {
        file: [(f"{file}:{line}", "noid", "g", float(line)) for line in (1, 2)]
        for file in ("noid.jsonl", "./noid.jsonl")
    }
    places = {file: [(file, 1), (file, 2)] for file in rows}
    first, second = (
        scored(name, rows[file], places[file], model="m")
        for name, file in zip("ab", rows, strict=True)
    )
    found = compare_runs(first, second)
    assert (found["joined"], found["changed"]) == (2, [])
    # `select` writes such ids into what it chose, which is another file.
    chosen = scored("c", rows["noid.jsonl"][1:], [("chosen.jsonl", 1)], model="m")
    assert compare_runs(first, chosen)["joined"] == 1


def test_a_file_is_the_same_wherever_it_lies(scored: Write) -> None:
    def run(name: str, files: dict[str, str]) -> Path:
        rows = [
            (f"{file}:{line}", "noid", "g", float(line + int(sha256[0])))
            for file, sha256 in files.items()
            for line in (1, 2)
        ]
        places = [(file, line) for file in files for line in (1, 2)]
        return scored(name, rows, places, model="m", data=list(files), hashes=list(files.values()))

    first = run("a", {"here/data.jsonl": "1f", "here/rest.jsonl": "2f"})
    assert compare_runs(first, run("b", {"there/new.jsonl": "1f"}))["joined"] == 2
    with pytest.raises(InputError, match="no record in common"):
        compare_runs(first, run("c", {"there/data.jsonl": "3f"}))
    # Two that changed names are still themselves.
    swapped = {"here/data.jsonl": "2f", "here/rest.jsonl": "1f"}
    assert not compare_runs(first, run("e", swapped))["changed"]
    # Which of two that are alike it is, nothing tells.
    with pytest.raises(InputError, match="no record in common"):
        compare_runs(first, run("d", {"there/x.jsonl": "1f", "there/y.jsonl": "1f"}))


def test_runs_with_nothing_in_common_are_refused(scored: Write) -> None:
    first = scored("a", [("x", "s", "g", 1.0)], model="m")
    second = scored("b", [("y", "s", "g", 1.0)], model="m")
    with pytest.raises(InputError, match="no record in common"):
        compare_runs(first, second)


def eval_run(folder: Path, verdicts: dict[str, list[bool]]) -> Path:
    folder.mkdir()
    blank: dict[str, Any] = dict.fromkeys(SAMPLES_SCHEMA.names)
    rows = [
        blank | {"model": model, "task": "t", "id": f"q{n}", "correct": correct}
        for model, some in verdicts.items()
        for n, correct in enumerate(some)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA), folder / "samples.parquet")
    return folder


def test_evaluations_are_compared_by_the_share_that_is_correct(
    scored: Write, tmp_path: Path
) -> None:
    first = eval_run(tmp_path / "a", {"base": [True, False] * 20})
    second = eval_run(tmp_path / "b", {"tuned": [True, True, True, False] * 10})
    found = compare_runs(first, second)
    figures = found["sources"]["t"]["metrics"]["correct"]
    assert (figures["first"], figures["second"]) == (0.5, 0.75)
    assert figures["verdict"] == "higher"
    with pytest.raises(UsageError, match="of a `score` run"):
        compare_runs(first, scored("c", ROWS, model="m"))


def sample(correct: bool) -> Sample:
    blank: dict[str, Any] = {field.name: None for field in fields(Sample)}
    return Sample(**blank | {"task": "t", "method": "generation", "correct": correct})


@pytest.mark.parametrize(
    ("n", "gained", "lost"),
    [
        (2, 2, 0),
        (5, 3, 0),
        (20, 4, 0),
        (200, 4, 0),
        (1000, 5, 0),
        (1000, 6, 0),
        (50, 2, 12),
        (9, 0, 0),
    ],
)
def test_evaluations_are_compared_as_eval_compares_them(
    tmp_path: Path, n: int, gained: int, lost: int
) -> None:
    base = [number >= gained for number in range(n)]
    tuned = [number < n - lost for number in range(n)]
    runs = eval_run(tmp_path / "a", {"base": base}), eval_run(tmp_path / "b", {"tuned": tuned})
    told = summarize({BASE: list(map(sample, base)), "tuned": list(map(sample, tuned))})
    versus = told["tasks"]["t"]["models"]["tuned"]["versus_base"]
    figures = compare_runs(*runs)["overall"]["metrics"]["correct"]
    difference = figures["difference"]
    assert difference["value"] == versus["difference"]
    assert [difference["low"], difference["high"]] == versus["interval"]
    words = {"better": "higher", "worse": "lower", "within noise": "not distinguishable"}
    assert figures["verdict"] == words[versus["verdict"]]


def test_several_models_on_few_questions_are_no_more_questions(tmp_path: Path) -> None:
    names = [f"seed {number}" for number in range(8)]
    first = eval_run(tmp_path / "a", {name: [False] * 3 for name in names})
    second = eval_run(tmp_path / "b", {name: [True] * 3 for name in names})
    overall = compare_runs(first, second)["overall"]
    assert (overall["n"], overall["num_groups"]) == (24, 3)
    figures = overall["metrics"]["correct"]
    assert figures["verdict"] == "not distinguishable"
    one = compare_runs(
        eval_run(tmp_path / "c", {"x": [False] * 3}), eval_run(tmp_path / "d", {"y": [True] * 3})
    )
    assert figures["difference"] == one["overall"]["metrics"]["correct"]["difference"]


def test_questions_of_one_id_are_questions_of_their_own(tmp_path: Path) -> None:
    runs = []
    for name, correct in (("a", False), ("b", True)):
        rows = [
            {**dict.fromkeys(SAMPLES_SCHEMA.names), "model": "m", "task": "t", "id": "q"}
            | {"file": "t.jsonl", "line": line, "correct": correct}
            for line in range(1, 7)
        ]
        (tmp_path / name).mkdir()
        runs.append(tmp_path / name / "samples.parquet")
        pq.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA), runs[-1])
    overall = compare_runs(*runs)["overall"]
    assert overall["num_groups"] == 6
    assert overall["metrics"]["correct"]["verdict"] == "higher"


def test_models_of_the_same_name_are_compared(tmp_path: Path) -> None:
    first = eval_run(tmp_path / "a", {"base": [True] * 4, "tuned": [False] * 4})
    second = eval_run(tmp_path / "b", {"tuned": [True, False] * 2, "base": [True] * 4})
    found = compare_runs(first, second)
    differences = {
        name: entry["metrics"]["correct"]["difference"]["value"]
        for name, entry in found["sources"].items()
    }
    assert differences == {"base: t": 0.0, "tuned: t": 0.5}


def test_a_model_among_several_is_compared_with_the_run_of_it_alone(tmp_path: Path) -> None:
    both = eval_run(tmp_path / "a", {"base": [True] * 4, "tuned": [False] * 4})
    alone = eval_run(tmp_path / "b", {"base": [True, False] * 2})
    found = compare_runs(both, alone)
    assert found["joined"] == 4
    assert found["sources"]["base: t"]["metrics"]["correct"]["difference"]["value"] == -0.5
    assert [one["n"] for one in found["only"]] == [4, 0]
    other = eval_run(tmp_path / "c", {"third": [True] * 4})
    with pytest.raises(InputError, match=r"`q0` \(third: t\) and `q0` \(base: t\)"):
        compare_runs(both, other)


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scores.parquet"
    file.write_bytes(content)
    with pytest.raises(InputError, match="does not read as the table"):
        compare_runs(file, file)
    with pytest.raises(InputError, match="does not exist"):
        compare_runs(tmp_path / "none", file)
    pq.write_table(pa.table({"id": ["a"]}), file)
    with pytest.raises(InputError, match="no column `source`"):
        compare_runs(file, file)

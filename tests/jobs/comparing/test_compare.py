from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.comparing.job import compare_runs
from fam_engine.jobs.evaluation.files import SAMPLES_SCHEMA
from fam_engine.jobs.scoring.files import scores_schema, write_table
from fam_engine.measure.replay import spearman
from fam_engine.measure.statistics import ratio_estimate, resample_groups

Write = Callable[..., Path]


@pytest.fixture
def scored(tmp_path: Path) -> Write:
    """Write what a score run leaves: (id, source, group, nll_mean) a row."""

    def write(
        name: str, rows: Sequence[tuple[str, str, str, float | None]], **settings: object
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
                    "id": one,
                    "source": source,
                    "group": group,
                    "nll_mean": nll,
                    "bits_per_byte": None if nll is None else 2 * nll,
                }
                for one, source, group, nll in rows
            ),
        )
        (folder / "summary.json").write_text(
            json.dumps({"settings": {"out": name, **settings}, "key": {"model": settings["model"]}})
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
    # The second `x` belongs to the second one; `y` has no value to compare.
    assert [row["difference"] for row in found["changed"]] == [1.0, 0.5]
    assert found["overall"]["metrics"]["nll_mean"]["n"] == 2
    assert found["settings"] == {"model": ["m", "n"]}


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


def test_models_of_the_same_name_are_compared(tmp_path: Path) -> None:
    first = eval_run(tmp_path / "a", {"base": [True] * 4, "tuned": [False] * 4})
    second = eval_run(tmp_path / "b", {"tuned": [True, False] * 2, "base": [True] * 4})
    found = compare_runs(first, second)
    differences = {
        name: entry["metrics"]["correct"]["difference"]["value"]
        for name, entry in found["sources"].items()
    }
    assert differences == {"base: t": 0.0, "tuned: t": 0.5}


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

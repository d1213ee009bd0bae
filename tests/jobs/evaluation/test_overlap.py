from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.config import EvalConfig
from fam_engine.errors import InputError
from fam_engine.jobs.evaluation.forecast import forecast_eval
from tests.jobs.evaluation.small_eval import QUESTIONS, evaluate, write
from tests.jobs.training.small_job import Notes


def test_questions_that_were_trained_on_are_named(tiny_model: Path, tmp_path: Path) -> None:
    trained = [
        {"prompt": "Question  3\n", "response": "blue"},
        {"prompt": "question 5?\n", "response": "red"},
        {"prompt": "question 7?\n", "response": "red"},
        {"query": "question 1"},
    ]
    train = write(tmp_path / "train.jsonl", trained)
    data = write(tmp_path / "task.jsonl", QUESTIONS)
    outcome = evaluate(tiny_model, data, tmp_path / "out", train=(str(train),))
    assert outcome.summary["overlap"] == [
        {
            "file": str(train),
            "read": 3,
            "skipped": 1,
            "task": "colours",
            "n": 6,
            "same": 2,
            "similar": 0,
            "ids": ["q3", "q5"],
        }
    ]
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tiny_model, data, tmp_path / "x", train=("missing.jsonl",))
    empty = write(tmp_path / "empty.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match="no questions"):
        evaluate(tiny_model, data, tmp_path / "out", train=(str(empty),))


@pytest.mark.parametrize(
    ("task", "train", "test", "columns", "count"),
    [
        ("boolq", "train.json", "test.json", {"answer": "gold_label"}, (1000, 1000, 0)),
        ("gsm8k", "train.jsonl", "test.jsonl", {}, (1319, 0, 0)),
    ],
)
def test_a_leaked_set_is_flagged_whole_and_a_clean_one_passes(
    shared: Path,
    tmp_path: Path,
    task: str,
    train: str,
    test: str,
    columns: dict[str, str],
    count: tuple[int, int, int],
) -> None:
    """As `eval --dry-run --train` says it of files as they were published."""
    folder = shared / "data" / task
    config = EvalConfig(
        model="embedded",
        data=(str(folder / test),),
        map=columns,
        train=(str(folder / train),),
        out=tmp_path,
    )
    (found,) = forecast_eval(config, Notes()).overlap
    assert (found["n"], found["same"], found["similar"]) == count

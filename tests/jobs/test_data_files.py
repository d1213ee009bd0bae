"""Data files by name: which are one, what their records are labelled with, which columns they have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.config import EvalConfig, ExportConfig, TokenizeConfig
from fam_engine.errors import InputError
from fam_engine.jobs.data_files import find_distinct_files, find_files, note_unseen_columns
from fam_engine.jobs.evaluation.job import run_eval
from fam_engine.jobs.exporting.job import run_export
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.tokenizing.job import run_tokenize
from tests.jobs.test_refused_input import COMMANDS, GOOD
from tests.jobs.training.small_job import Notes

ROW = {**GOOD, "rater": 1}
MISTYPED = (
    "--map source=ratr: none of the first 1,024 rows of a file has a column `ratr`; "
    "did you mean `rater`?"
)


def write(path: Path, rows: Sequence[dict[str, Any]] = (ROW,)) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    names = [write(tmp_path / folder / "a.jsonl") for folder in ("x", "y")]
    assert [file.stem for file in find_files(names)] == ["x/a", "y/a"]
    assert [file.stem for file in find_files(names[:1])] == ["a"]


def test_a_file_is_one_however_it_is_spelled(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(name)
    for again in (name, f"{tmp_path}/../{tmp_path.name}/a.jsonl", f"{tmp_path}/link.jsonl"):
        with pytest.raises(InputError, match="is the same file as") as caught:
            find_distinct_files([name, again])
        assert caught.value.code == "E_INPUT_TWICE"
    find_distinct_files([name, write(tmp_path / "copy.jsonl")])


def test_no_question_counts_twice(tiny_model: Path, tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl")
    config = EvalConfig(model=str(tiny_model), data=(name, name), out=tmp_path / "out")
    with pytest.raises(InputError, match="is the same file as"):
        run_eval(config, Notes())
    assert not config.out.exists()


def test_a_column_of_any_file_is_seen(tmp_path: Path) -> None:
    late = [GOOD] * 1023 + [ROW, {**GOOD, "weight": 1}]
    lines = write(tmp_path / "a.jsonl", late)
    pq.write_table(pa.table({"model": ["m"], "empty": [None]}), tmp_path / "b.parquet")
    files = find_files([lines, str(tmp_path / "b.parquet")])
    notes = Notes()
    columns = {"source": "rater", "group": "model", "id": "empty"}
    note_unseen_columns(files, columns, notes.note)
    assert not notes.notes
    note_unseen_columns(files, {"source": "weight", "group": "model"}, notes.note)
    (note,) = notes.notes
    assert note.startswith("--map source=weight: none of the first 1,024 rows of a file has")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_column_is_told_by(command: str, tiny_model: Path, tmp_path: Path) -> None:
    make, prepared = COMMANDS[command]
    settings: dict[str, Any] = {
        "model": str(tiny_model),
        "device": "cpu",
        "map": {"source": "ratr"},
    }
    if command in ("generate", "eval", "rewrite"):
        settings["max_new_tokens"] = 16
    config = make(data=(write(tmp_path / "a.jsonl"),), out=tmp_path / "out", **settings)
    notes = Notes()
    with Interrupts() as interrupts, prepared(config, config.out, notes, interrupts):
        pass
    assert MISTYPED in notes.notes


def test_a_mistyped_column_is_told_by_tokenize_and_export(tiny_model: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data": (write(tmp_path / "a.jsonl"),),
        "map": {"source": "ratr"},
    }
    notes = Notes()
    run_tokenize(TokenizeConfig(model=str(tiny_model), **common), notes)
    run_export(ExportConfig(format="trl", out=tmp_path / "trl.jsonl", **common), notes)
    assert notes.notes.count(MISTYPED) == 2

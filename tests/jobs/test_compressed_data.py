"""Every command gives with compressed data what it gives with the plain file, and refuses what is damaged."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.config import (
    EvalConfig,
    ExportConfig,
    GenerateConfig,
    RewriteConfig,
    ScoreConfig,
    SelectConfig,
    TokenizeConfig,
    TrainConfig,
)
from fam_engine.errors import InputError
from fam_engine.jobs.evaluation.job import run_eval
from fam_engine.jobs.experiment.questions import read_questions
from fam_engine.jobs.exporting.job import run_export
from fam_engine.jobs.generation.job import run_generate
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.rewriting.job import run_rewrite
from fam_engine.jobs.scoring import entries as pass_two
from fam_engine.jobs.scoring.ingest import Ingest
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.selection.job import run_select
from fam_engine.jobs.tokenizing.job import run_tokenize
from fam_engine.jobs.training.job import run_train
from tests.jobs.training.small_job import Notes, make_records

ENDINGS = (".gz", ".zst")
MODEL = {"precision": "fp32", "device": "cpu"}
# Command: its settings and what runs it, the settings of a small job, what it leaves.
JOBS: dict[str, tuple[Any, Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
    "score": (
        ScoreConfig,
        run_score,
        {**MODEL, "tokens": True, "max_tokens_per_batch": 64},
        ("scores.parquet", "tokens.parquet", "quarantine.jsonl"),
    ),
    "score in context": (
        ScoreConfig,
        run_score,
        {**MODEL, "in_context": 1, "ifd": True},
        ("scores.parquet", "quarantine.jsonl"),
    ),
    "tokenize": (TokenizeConfig, run_tokenize, {"ids": "jsonl"}, ("ids.jsonl", "quarantine.jsonl")),
    "generate": (
        GenerateConfig,
        run_generate,
        {**MODEL, "max_new_tokens": 8, "temperature": 0.8, "samples": 1},
        ("generated.jsonl", "quarantine.jsonl"),
    ),
    "rewrite": (
        RewriteConfig,
        run_rewrite,
        {**MODEL, "max_new_tokens": 8, "samples": 1, "method": "answer"},
        ("rewritten.jsonl", "candidates.parquet", "quarantine.jsonl"),
    ),
    "eval": (
        EvalConfig,
        run_eval,
        {**MODEL, "max_new_tokens": 8},
        ("samples.parquet", "quarantine.jsonl"),
    ),
    "train": (
        TrainConfig,
        run_train,
        {**MODEL, "rank": 2, "steps": 2, "batch_size": 4},
        ("adapter/adapter_model.safetensors", "quarantine.jsonl"),
    ),
}


def packed(plain: Path, ending: str) -> Path:
    path = plain.with_name(plain.name + ending)
    content = plain.read_bytes()
    if ending == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        with pa.output_stream(path, compression="zstd") as file:
            file.write(content)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Records whose source is the file's name, and one that is none."""
    path = tmp_path / "data.jsonl"
    rows = [{**record, "answer": "3"} for record in make_records(12)]
    for row in rows:
        del row["source"]
    lines = [json.dumps(row) for row in rows]
    lines.insert(5, '{"id": 1,')
    path.write_text("\n".join(lines))
    return path


def run(command: str, model: Path, data: Path, out: Path) -> None:
    make, job, settings, _ = JOBS[command]
    job(make(model=str(model), data=(str(data),), out=out, **settings), Notes())


def content(path: Path, ending: str) -> Any:  # noqa: ANN401 - bytes or rows
    """What a file says, the data file's ending apart."""
    if path.suffix == ".parquet":
        path_rows = json.dumps(pq.read_table(path).to_pylist())
        return path_rows.replace(f"data.jsonl{ending}", "data.jsonl")
    return path.read_bytes().replace(f"data.jsonl{ending}".encode(), b"data.jsonl")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("command", JOBS)
def test_a_command_gives_what_it_gives_of_the_plain_file(
    command: str, ending: str, tiny_model: Path, plain: Path, tmp_path: Path
) -> None:
    run(command, tiny_model, plain, tmp_path / "plain")
    run(command, tiny_model, packed(plain, ending), tmp_path / "packed")
    for name in JOBS[command][-1]:
        expected = content(tmp_path / "plain" / name, ending)
        assert expected
        assert content(tmp_path / "packed" / name, ending) == expected, name


@pytest.mark.parametrize("ending", ENDINGS)
def test_records_are_selected_and_exported_from_compressed_data(
    ending: str, tiny_model: Path, plain: Path, tmp_path: Path
) -> None:
    for label, data in (("plain", plain), ("packed", packed(plain, ending))):
        run("score", tiny_model, data, tmp_path / label)
        chosen = tmp_path / f"{label}-chosen"
        scores = tmp_path / label / "scores.parquet"
        given = {"data": (str(data),), "test": (str(data),)}
        run_select(SelectConfig(**given, scores=scores, out=chosen, per="question"), Notes())
        exported = tmp_path / f"{label}-exported.jsonl"
        again = packed(chosen / "selected.jsonl", ending)
        run_export(ExportConfig(data=(str(again),), format="trl", out=exported), Notes())
    for name in ("{}-chosen/selected.jsonl", "{}-chosen/dropped.parquet", "{}-exported.jsonl"):
        one, two = (content(tmp_path / name.format(label), ending) for label in ("plain", "packed"))
        assert one == two
        assert one
    assert (tmp_path / "plain-chosen" / "selected.jsonl").read_text().count('"data"') == 6


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("command", JOBS)
def test_a_cut_archive_is_one_error_and_leaves_the_folder_free(
    command: str, ending: str, tiny_model: Path, plain: Path, tmp_path: Path
) -> None:
    whole = packed(plain, ending)
    archive = whole.read_bytes()
    whole.write_bytes(archive[:-6])
    with pytest.raises(InputError, match=r"data\.jsonl\.\w+:\d+: does not read as") as caught:
        run(command, tiny_model, whole, tmp_path / "out")
    assert caught.value.code == "E_INPUT_COMPRESSED"
    whole.write_bytes(archive)
    run(command, tiny_model, whole, tmp_path / "out")
    assert (tmp_path / "out" / JOBS[command][-1][0]).is_file()


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_of_nothing_holds_no_records(
    ending: str, tiny_model: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "data.jsonl"
    plain.touch()
    for command in JOBS:
        with pytest.raises(InputError, match="holds no records") as caught:
            run(command, tiny_model, packed(plain, ending), tmp_path / "out")
        assert caught.value.code == "E_INPUT_EMPTY"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_stopped_while_it_reads_or_scores_goes_on_to_the_same_bytes(
    ending: str, tiny_model: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(plain, ending)
    run("score", tiny_model, data, tmp_path / "whole")

    # Behind the first chunk, of one line, and the first batch.
    for owner, name in ((Ingest, "_take"), (pass_two.EntryScorer, "facts")):
        whole, calls = getattr(owner, name), itertools.count()

        def stopped(
            *given: object, whole: Callable[..., Any] = whole, calls: Iterator[int] = calls
        ) -> Any:  # noqa: ANN401
            if next(calls):
                raise Interrupted(15)
            return whole(*given)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped)
            with pytest.raises(Interrupted):
                run("score", tiny_model, data, tmp_path / "parts")
        assert not (tmp_path / "parts" / "scores.parquet").exists()
    run("score", tiny_model, data, tmp_path / "parts")
    for name in JOBS["score"][-1]:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_workers_share_a_compressed_file(
    ending: str, tiny_model: Path, plain: Path, tmp_path: Path
) -> None:
    data = packed(plain, ending)
    run("score", tiny_model, data, tmp_path / "alone")
    settings = {**JOBS["score"][2], "launcher": "local", "workers": 2}
    config = ScoreConfig(
        model=str(tiny_model), data=(str(data),), out=tmp_path / "shared", **settings
    )
    run_score(config, Notes())
    for name in JOBS["score"][-1]:
        assert content(tmp_path / "shared" / name, "") == content(tmp_path / "alone" / name, "")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_study_reads_compressed_questions(ending: str, plain: Path) -> None:
    questions = list(read_questions(packed(plain, ending)))
    assert questions == list(read_questions(plain))
    assert len(questions) == 12

"""`--boundary joint`, the published protocol: what it changes, and where it is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fam_engine.config import ScoreConfig
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.embedded import MODEL
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.job import run_score
from tests.jobs.training.small_job import Notes, write_records

# Encoded as one text, `th` and `e` share a token.
RECORDS = [{"prompt": "Janet ate th", "response": "e eggs"}]
# Siblings whose prompts end in other tokens when they are encoded with their answers. The first record of a
# file is read in Python, the others in Rust.
SIBLINGS = [
    {"prompt": f"{name} ate th", "response": response}
    for name in ("Janet", "Peter")
    for response in ("e eggs", "ree eggs", "5 eggs")
]


def test_joint_encodes_prompt_and_response_together(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MODEL)
    whole, context = (
        tokenizer.encode_batch([text])[0].tolist()
        for text in ("Janet ate the eggs", "Janet ate th")
    )
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    ids = {}
    for boundary in ("separate", "joint"):
        out = tmp_path / boundary
        config = ScoreConfig(
            model="embedded",
            data=(str(data),),
            out=out,
            boundary=boundary,
            tokens=True,
            device="cpu",
        )
        summary = run_score(config, Notes()).summary
        assert summary["settings"]["boundary"] == summary["key"]["boundary"] == boundary
        assert json.loads((out / "summary.json").read_text())["settings"]["boundary"] == boundary
        (row,) = pq.read_table(out / "tokens.parquet").to_pylist()
        ids[boundary] = row["token_ids"]
        (score,) = pq.read_table(out / "scores.parquet").to_pylist()
        assert score["flags"] == ["boundary_merged"]
    # Cut at the length of the context alone, wherever that falls.
    assert ids["joint"] == whole[len(context) :]
    assert ids["joint"] != ids["separate"]


def test_a_question_is_one_group_whatever_the_boundary(tmp_path: Path) -> None:
    data = write_records(tmp_path / "data.jsonl", SIBLINGS)
    groups = {}
    for boundary in ("separate", "joint"):
        out = tmp_path / boundary
        run_score(
            ScoreConfig(
                model="embedded", data=(str(data),), out=out, boundary=boundary, device="cpu"
            ),
            Notes(),
        )
        groups[boundary] = pq.read_table(out / "scores.parquet")["group"].to_pylist()
    first, second = groups["separate"][0], groups["separate"][3]
    assert first != second
    assert groups["separate"] == groups["joint"] == [first] * 3 + [second] * 3


def test_a_run_with_the_other_boundary_is_another_run(tmp_path: Path) -> None:
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    settings = {"model": "embedded", "data": (str(data),), "out": tmp_path / "o", "device": "cpu"}
    run_score(ScoreConfig(**settings), Notes())
    with pytest.raises(UsageError, match="boundary"):
        run_score(ScoreConfig(**settings, boundary="joint"), Notes())

"""Every command with hostile ids, sources, questions and answers: they are shown and printed, nothing acts."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.report.test_html import assert_safe

TEXT = "<script>alert(1)</script><img src=x onerror='alert(1)'>\x1b[31m\u202e\x00\x07'\" onload=\"x"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Records of which everything is hostile, their file's name and a broken line too."""
    rows = [
        {
            "id": f"{TEXT}{number}",
            "source": f"{TEXT}{number % 2}",
            "task": TEXT,
            "prompt": f"{TEXT} {number // 2}?\n",
            "response": f"{TEXT} so A: {number}",
            "answer": f"{number}",
        }
        for number in range(8)
    ]
    file = tmp_path / "<b>data\x1b[31m.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"<script>\x1b[31m": \n')
    return file


def assert_plain(printed: str) -> None:
    """Nothing in it steers a terminal."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", printed)


def test_every_command(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    scores = tmp_path / "score" / "scores.parquet"
    short = ("--max-new-tokens", "4")
    with_model = {
        "score": ("--ifd",),
        "generate": short,
        "rewrite": (*short, "--samples", "1", "--method", "answer"),
        "train": ("--steps", "1", "--rank", "2"),
        "eval": short,
    }
    for command, flags in with_model.items():
        out = tmp_path / command
        for dry in ((), ("--dry-run",)):
            common = ("--model", tiny_model, "--data", data, "--out", out)
            code, printed, told = run(command, *common, *flags, *dry)
            assert code == 3, (command, told)
            assert_plain(printed + told)
    code, printed, told = run(
        "select", "--data", data, "--scores", scores, "--out", tmp_path / "select"
    )
    assert code in (0, 3), told
    assert_plain(printed + told)
    pages = {path.parent.name for path in tmp_path.glob("*/report.html")}
    assert pages == {"score", "eval"}
    for page in pages:
        text = (tmp_path / page / "report.html").read_text(encoding="utf-8")
        assert_safe(text)
        assert "&lt;script&gt;" in text
        assert "onerror" in text
    card = (tmp_path / "train" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert_plain(card)
    assert not re.search(r"(?<!\\)<", card)


def test_replayed_results(run: Run, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.csv"
    with ledger.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "task", "variant", "ppl", TEXT.replace("\x00", ""), "accuracy"])
        for task in range(3):
            rows.writerows(
                [
                    [TEXT.replace("\x00", ""), f"task <b>{task}", f"{v}", v, 2 - v, 0.5 + v / 9]
                    for v in (0, 1)
                ]
            )
    code, printed, told = run("select", "--replay", ledger)
    assert code == 0, told
    assert_plain(printed + told)

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

ROWS = [
    {"prompt": prompt, "response": response, "source": source, "correct": source == "long"}
    for prompt in ("one\n", "two\n")
    for source, response in (("short", "a b"), ("long", "a b c d"))
]
LEDGER = "model,task,variant,ppl,accuracy\nm,t,a,1,0.5\nm,t,b,2,0.6\n"


@pytest.fixture
def flags(run: Run, tiny_model: Path, tmp_path: Path) -> list[str | Path]:
    """Flags of a selection from records that were really scored."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    scored = tmp_path / "scored"
    job = ("--model", tiny_model, "--data", data, "--out", scored, "--quiet", "--ifd")
    assert run("score", *job)[0] == 0
    return ["--data", data, "--scores", scored / "scores.parquet", "--out", tmp_path / "out"]


def test_a_selection_prints_tables_and_leaves_its_files(
    run: Run, flags: list[str | Path], tmp_path: Path
) -> None:
    code, printed, _ = run("select", *flags, "--metric", "ifd", "--quiet")
    assert code == 0
    assert "2 of 4 records selected: the lowest ifd for each question" in printed
    assert "selected.jsonl, dropped.parquet, quarantine.jsonl, summary.json" in printed
    assert len((tmp_path / "out" / "selected.jsonl").read_text().splitlines()) == 2


def test_json_is_all_of_standard_output(run: Run, flags: list[str | Path], tmp_path: Path) -> None:
    limits = ("--correct-only", "--per", "source", "--quota", "long=1", "--json")
    code, printed, _ = run("select", *flags, *limits, "--dry-run")
    assert code == 0
    summary = json.loads(printed)
    assert summary["records"]["dropped_by_reason"] == {"incorrect": 2, "source_limit": 1}
    assert summary["scored_by"]["precision"] == "nf4"
    assert not (tmp_path / "out").exists()
    assert json.loads(run("select", *flags, *limits)[1])["records"] == summary["records"]


def test_what_it_selects_can_be_scored(
    run: Run, flags: list[str | Path], tiny_model: Path, tmp_path: Path
) -> None:
    assert run("select", *flags, "--quiet")[0] == 0
    again = ("--data", tmp_path / "out" / "selected.jsonl", "--out", tmp_path / "again")
    code, printed, _ = run("score", "--model", tiny_model, *again, "--json", "--quiet")
    assert code == 0
    assert json.loads(printed)["records"]["scored"] == 2


@pytest.mark.parametrize(
    ("change", "code", "starts", "named"),
    [
        (("--metric", "ppl"), 2, "error[E_METRIC]", "one of perplexity"),
        (("--per", "answer"), 2, "error[E_CONFIG_VALUE]", "'question', 'source' or 'all'"),
        (("--band", "0.9:0.1"), 2, "error[E_CONFIG_VALUE]", "LOW < HIGH"),
        (("--band", "half"), 2, "error[E_CONFIG_VALUE]", "band"),
        (("--quota", "long"), 2, "error[E_USAGE]", "SOURCE=N"),
        (("--quota", "long=1", "--quota", "long=2"), 2, "error[E_USAGE]", "has one already"),
        (("--band", "0.25"), 2, "error[E_CONFIG_VALUE]", "expected two quantiles LOW:HIGH"),
        (("--quota", "long=many"), 2, "error[E_CONFIG_VALUE]", "quota.long"),
        (("--quota", "log=1"), 2, "error[E_SOURCE_MIX]", "did you mean `long`"),
        (("--max-share", "1.5"), 2, "error[E_CONFIG_VALUE]", "max_share"),
        (("--scores", "no.parquet"), 4, "error[E_SCORES] no.parquet", "scores.parquet of"),
        (("--data", "no.jsonl"), 4, "error[E_INPUT_FILE] no.jsonl", "does not exist"),
        (("--test", "no.jsonl"), 4, "error[E_INPUT_FILE] no.jsonl", "does not exist"),
        (("--out", "/dev/null/x"), 5, "error[E_STORAGE]", "cannot be written"),
        (("--replay", "l.csv"), 2, "error[E_USAGE]", "takes no --data"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run,
    flags: list[str | Path],
    change: tuple[str, str],
    code: int,
    starts: str,
    named: str,
) -> None:
    kept = [] if change[0] == "--data" else flags[:2]
    found, _, err = run("select", *kept, *flags[2:], *change, "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_a_bad_record_ends_in_exit_code_3(run: Run, flags: list[str | Path]) -> None:
    with Path(flags[1]).open("a") as file:
        file.write("not json\n")
    code, printed, _ = run("select", *flags, "--quiet")
    assert code == 3
    assert "E_JSON_SYNTAX" in printed


def test_a_ledger_is_judged(run: Run, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(LEDGER)
    code, printed, _ = run("select", "--replay", ledger, "--json")
    assert code == 0
    result = json.loads(printed)
    assert {"rule", "cells", "metrics", "random"} <= result.keys()
    assert result["metrics"]["perplexity"].keys() >= {"regret", "interval", "spearman"}
    assert result["metrics"]["perplexity"]["regret"] == pytest.approx(10.0)
    assert "Accuracy lost by picking" in run("select", "--replay", ledger)[1]
    ledger.write_text(LEDGER + "m,t,c,3,60\n")
    code, _, err = run("select", "--replay", ledger)
    assert code == 4
    assert err.startswith(f"error[E_LEDGER] {ledger}:4: `accuracy` is 60, expected a share")


def test_settings_may_come_from_a_file(run: Run, flags: list[str | Path], tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    file.write_text("per: all\nband: [0.5, 1]\nquota: {short: 1, long: 1}\n")
    code, printed, _ = run("select", *flags, "--config", file, "--json", "--dry-run")
    assert code == 0
    assert json.loads(printed)["choice"]["band"] == [0.5, 1.0]


def test_the_flags_are_the_settings_and_no_others() -> None:
    import inspect

    from fam_engine.cli.select import run as command
    from fam_engine.config import ReplayConfig, SelectConfig

    flags = {name.rstrip("_") for name in inspect.signature(command).parameters}
    settings = set(SelectConfig.model_fields) | set(ReplayConfig.model_fields)
    assert flags - settings == {"config", "dry_run", "as_json", "quiet"}
    assert settings <= flags


def test_selecting_loads_no_torch(tmp_path: Path) -> None:
    import subprocess

    program = "import sys, fam_engine.jobs.selection.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

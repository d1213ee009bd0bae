from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


def test_two_real_runs_are_compared(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [
        {"id": f"r{n}", "prompt": f"question {n % 3}\n", "response": f"answer {n}", "source": s}
        for n, s in enumerate(["one [b]", "two"] * 3)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = tmp_path / "a", tmp_path / "b"
    job = ("score", "--model", tiny_model, "--data", data, "--quiet")
    assert run(*job, "--out", first, "--precision", "fp32")[0] == 0
    assert run(*job, "--out", second, "--precision", "nf4", "--limit", "5")[0] == 0
    code, printed, _ = run("compare", first, second)
    assert code == 0
    assert "5 records are in both" in printed
    assert "only in A: 1 (r5)" in printed
    assert "one [b]" in printed
    assert 'precision: "fp32", "nf4"' in printed
    assert "one [b] and two: fewer than 20 questions" in printed
    assert max(map(len, printed.splitlines())) <= 80
    code, printed, _ = run("compare", first, second, "--json")
    found = json.loads(printed)
    assert found["settings"]["limit"] == [None, 5]
    assert found["overall"]["metrics"]["nll_mean"]["n"] == 5
    assert run("compare", first, tmp_path)[0] == 4

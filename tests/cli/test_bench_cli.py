from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from fam_engine.cli import bench
from fam_engine.config import BenchConfig
from fam_engine.jobs.bench import job
from tests.cli.conftest import Run


def test_flags_are_the_settings() -> None:
    flags = set(inspect.signature(bench.run).parameters) - {"config", "as_json", "quiet"}
    assert flags == set(BenchConfig.model_fields)


def test_a_run_is_written_and_compared(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "old.json"
    words = ("bench", "pack", "--rounds", "2", "--quiet")
    code, printed, _ = run(*words, "--out", out)
    assert code == 0
    assert "records/s" in printed
    before = json.loads(out.read_text())
    # Measured once: what runs after it find is the same, without a process that imports torch.
    measured = json.loads(out.read_text())["workloads"]["pack"]
    monkeypatch.setattr(job, "_measure", lambda *_: measured)
    before["workloads"]["pack"]["per_second"] *= 1000
    out.write_text(json.dumps(before))
    code, printed, _ = run(*words, "--compare", out)
    assert code == 11
    assert "slower" in printed
    before["workloads"]["pack"]["per_second"] /= 1e6
    out.write_text(json.dumps(before))
    code, printed, _ = run(*words, "--compare", out, "--json")
    assert code == 0
    (change,) = json.loads(printed)["changes"]
    assert change["verdict"] == "faster"

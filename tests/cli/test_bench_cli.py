from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

from fam_engine.cli import bench, main
from fam_engine.config import BenchConfig


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["fam-engine", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


def test_flags_are_the_settings() -> None:
    flags = set(inspect.signature(bench.run).parameters) - {"config", "as_json", "quiet"}
    assert flags == set(BenchConfig.model_fields)


def test_a_run_is_written_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "old.json"
    words = ("pack", "--rounds", "2", "--quiet")
    assert call(monkeypatch, *words, "--out", out) == 0
    assert "records/s" in capsys.readouterr().out
    before = json.loads(out.read_text())
    # No machine packs a thousand times faster from one minute to the next.
    before["workloads"]["pack"]["per_second"] *= 1000
    out.write_text(json.dumps(before))
    assert call(monkeypatch, *words, "--compare", out) == 11
    assert "slower" in capsys.readouterr().out
    before["workloads"]["pack"]["per_second"] /= 1e6
    out.write_text(json.dumps(before))
    assert call(monkeypatch, *words, "--compare", out, "--json") == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change["verdict"] == "faster"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import BenchConfig
from fam_engine.errors import StorageError, UsageError
from fam_engine.jobs.bench import job
from fam_engine.jobs.bench.compare import compare, read_result
from fam_engine.jobs.bench.job import run_bench
from fam_engine.jobs.bench.workloads import WORKLOADS, demo_records
from fam_engine.jobs.progress import Nobody


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    config = BenchConfig(limit=2, rounds=2, warmup=1, precision="fp32", device="cpu")
    return run_bench(config, Nobody()).result


def test_every_workload_runs_on_the_embedded_model(result: dict[str, Any]) -> None:
    assert set(result["workloads"]) == set(WORKLOADS)
    for row in result["workloads"].values():
        assert len(row["seconds"]) == 2
        assert row["per_second"] == pytest.approx(row["amount"] / row["median_seconds"])
        assert row["peak_bytes"] > 10 << 20


def test_the_work_is_what_it_says(result: dict[str, Any]) -> None:
    workloads = result["workloads"]
    texts = [record[name] for record in demo_records() for name in ("prompt", "response")]
    num_bytes = sum(len(text.encode()) for text in texts)
    assert workloads["tokenize"]["amount"] % num_bytes == 0
    assert workloads["tokenize"]["details"]["num_tokens"] > num_bytes / 5
    assert 0.98 < workloads["pack"]["details"]["fill"] <= 1
    assert workloads["score"]["details"]["records"] == 2
    assert workloads["train-step"]["details"]["loss"] > 0
    # Training predicts the ends of the turns besides: one token more a record.
    assert workloads["train-step"]["amount"] == workloads["score"]["amount"] + 2
    assert 0 < workloads["generate"]["amount"] <= 2 * 64


def test_the_result_says_what_it_was_measured_on(result: dict[str, Any]) -> None:
    assert result["environment"]["versions"]["torch"]
    assert result["environment"]["device"]
    assert len(result["settings"]["model_sha256"]) == 64


def faster(result: dict[str, Any], factor: float) -> dict[str, Any]:
    copy = json.loads(json.dumps(result))
    for row in copy["workloads"].values():
        row["per_second"] *= factor
    return copy


def test_a_slow_down_beyond_the_limit_is_found(result: dict[str, Any]) -> None:
    def verdicts(factor: float) -> set[str]:
        before = faster(result, factor)
        changes = compare(before, result, max_slowdown=0.2, where="old.json")
        assert len(changes) == len(WORKLOADS)
        return {change.verdict for change in changes}

    assert verdicts(1.3) == {"slower"}
    assert verdicts(1.1) == {"within the limit"}
    assert verdicts(0.5) == {"faster"}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("environment", "device", "another"), ("settings", "limit", 3), ("settings", "device", "tpu")],
)
def test_results_of_different_things_are_not_compared(
    result: dict[str, Any], part: str, name: str, value: object
) -> None:
    before = {**result, part: {**result[part], name: value}}
    with pytest.raises(UsageError, match=rf"old\.json.*{name}: {value}"):
        compare(before, result, max_slowdown=0.1, where="old.json")


def test_other_work_is_not_compared(result: dict[str, Any]) -> None:
    before = json.loads(json.dumps(result))
    before["workloads"]["score"]["amount"] += 1
    with pytest.raises(UsageError, match="work of score"):
        compare(before, result, max_slowdown=0.1, where="old.json")


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    hollow = '{"environment": {}, "settings": {}, "workloads": {"score": %s}}'
    rows = ("5", "{}", '{"amount": "1", "per_second": 1}', '{"amount": 1, "per_second": NaN}')
    others = (
        '{"environment": 1, "settings": {}, "workloads": {}}',
        *(hollow % row for row in rows),
    )
    for text in ("", "[]", '{"workloads": {}}', *others):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"old\.json"):
            read_result(file)


def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_measure", lambda *_: pytest.fail("measured"))
    file = tmp_path / "old.json"
    settings = {"precision": "fp32", "device": "cpu", "compare": file}
    for change, limit, named in (
        ({"environment": {}}, 2, "device: None"),
        ({}, 3, "limit: 2, 3"),
        ({"workloads": {}}, 2, "no workload is in both"),
    ):
        file.write_text(json.dumps({**result, **change}))
        with pytest.raises(UsageError, match=named):
            run_bench(BenchConfig(limit=limit, **settings), Nobody())


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_result(tmp_path / "old.json")


def test_the_folder_of_the_result_is_made_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        run_bench(BenchConfig(device="cpu", out=tmp_path / "file" / "result.json"), Nobody())
    monkeypatch.setattr(job, "_measure", lambda *_: {})
    run_bench(BenchConfig(device="cpu", out=tmp_path / "new" / "result.json"), Nobody())
    assert (tmp_path / "new" / "result.json").exists()


def test_an_unknown_workload_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean `score`"):
        run_bench(BenchConfig(workloads=("scores",)), Nobody())

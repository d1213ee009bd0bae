from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fam_engine.config import ScoreConfig
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.sharing import local
from fam_engine.jobs.scoring.sharing.local import count_workers, run_local
from tests.jobs.scoring.test_job import make_records, write


class Told(Nobody):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.labels: list[str] = []
        self.num_parts = 0

    def start(self, label: str, total: int | None, unit: str) -> None:
        self.labels.append(label)
        self.num_parts = total or 0 if unit == "parts" else self.num_parts

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", make_records(400))


def config(model: Path, data: Path, out: Path, **settings: object) -> ScoreConfig:
    values = {"precision": "fp32", "device": "cpu", **settings}
    return ScoreConfig.model_validate(
        {"model": str(model), "data": (str(data),), "out": out, **values}
    )


def test_two_processes_give_the_bytes_of_one(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    run_score(config(tiny_model, data, tmp_path / "one"), Nobody())
    told = Told()
    shared = config(tiny_model, data, tmp_path / "two", launcher="local", workers=2)
    outcome = run_local(shared, told)
    assert outcome.summary["records"]["scored"] == 400
    assert outcome.summary["settings"].keys().isdisjoint({"launcher", "workers", "shard"})
    assert "scoring on 2 workers" in told.labels
    assert told.num_parts > 4
    for name in ("scores.parquet", "quarantine.jsonl", "report.html"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_what_is_wrong_is_told_as_by_one_process(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("broken\n")
    shared = config(tiny_model, data, tmp_path / "out", launcher="local", workers=1)
    with pytest.raises(InputError, match="not one record is usable") as caught:
        run_local(shared, Nobody())
    assert (caught.value.code, caught.value.where) == ("E_INPUT_UNUSABLE", f"{data}:1")


def test_there_is_a_worker_for_each_gpu(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(**settings: object) -> ScoreConfig:
        values = {"device": "auto", "launcher": "local", **settings}
        return config(tiny_model, data, tmp_path / "out", **values)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_workers(of()) == 4
    assert count_workers(of(workers=3)) == 3
    assert count_workers(of(device="cpu", workers=6)) == 6
    with pytest.raises(UsageError, match="6 workers were asked for, this machine has 4 GPUs"):
        count_workers(of(workers=6))
    with pytest.raises(UsageError, match="expected a number of workers"):
        count_workers(of(device="cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="expected a number of workers"):
        count_workers(of())


def test_gpus_are_named_as_this_process_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [local._gpu_name(number) for number in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f1c")
    assert [local._gpu_name(number) for number in range(2)] == ["3", "GPU-5f1c"]

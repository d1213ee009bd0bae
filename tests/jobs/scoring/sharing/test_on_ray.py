"""Ray: what a cluster has room for, and, where Ray is installed, real jobs on four logical GPUs (`make test-ray`)."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.config import ScoreConfig
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.peek import kept, peek
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.sharing import parts
from fam_engine.jobs.scoring.sharing.claims import living_workers
from fam_engine.jobs.scoring.sharing.on_ray import count_workers, run_on_ray, worker_needs
from tests.jobs.scoring.test_job import make_records, write

FILES = ("scores.parquet", "quarantine.jsonl", "report.html")
real = pytest.mark.ray


def config(model: Path, data: Path, out: Path, **settings: object) -> ScoreConfig:
    values = {"precision": "fp32", "launcher": "ray", **settings}
    return ScoreConfig.model_validate(
        {"model": str(model), "data": (str(data),), "out": out, **values}
    )


def test_a_cluster_has_room_for_whole_workers_on_each_node(tiny_model: Path) -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {"CPU": 1.0, "GPU": 0.5}]

    def of(device: str) -> dict[str, float]:
        return worker_needs(nodes, config(tiny_model, tiny_model, Path("out"), device=device))

    assert of("auto") == of("cuda") == {"GPU": 1}
    assert of("cpu") == {"CPU": 1}
    assert count_workers(nodes, {"GPU": 1}, None) == 2
    assert count_workers(nodes, {"CPU": 1}, None) == 13
    assert count_workers(nodes, {"CPU": 1}, 5) == 5
    with pytest.raises(
        UsageError, match="3 workers need a GPU each, the Ray cluster has 2"
    ) as caught:
        count_workers(nodes, {"GPU": 1}, 3)
    assert caught.value.hint == "--workers 2"
    with pytest.raises(UsageError, match="1 workers need a GPU each, the Ray cluster has 0"):
        count_workers(nodes[1:2], {"GPU": 1}, None)


def test_a_cluster_without_gpus_works_on_its_cpus(tiny_model: Path) -> None:
    settings = config(tiny_model, tiny_model, Path("out"))
    assert worker_needs([{"CPU": 2.0}], settings) == {"CPU": 1}


def test_without_ray_one_line_says_what_to_install(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is not installed") as caught:
        run_on_ray(config(tiny_model, tiny_model, tmp_path / "out"), Nobody())
    assert caught.value.hint == "pip install 'fam-engine[ray]'"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One node of four logical GPUs."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray (make test-ray)")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=4, num_gpus=4, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray's workers have; scores are the same bits for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data.jsonl", make_records(1200))


@pytest.fixture(scope="module")
def expected(
    tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("one") / "out"
    run_score(config(tiny_model, data, out, launcher=None), Nobody())
    return {name: (out / name).read_bytes() for name in FILES}


def assert_same(out: Path, expected: dict[str, Any]) -> None:
    assert {name: (out / name).read_bytes() for name in FILES} == expected


def num_workers(out: Path) -> int:
    with peek(out) as db:
        return len(kept(db, "gathered"))


@real
@pytest.mark.usefixtures("cluster")
def test_a_job_that_would_wait_for_ever_is_refused_at_once(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    # Ray itself would wait without a word.
    with pytest.raises(UsageError, match="5 workers need a GPU each, the Ray cluster has 4"):
        run_on_ray(config(tiny_model, data, tmp_path / "out", workers=5), Nobody())
    assert not (tmp_path / "out").exists()


@real
@pytest.mark.usefixtures("cluster")
def test_four_workers_share_a_small_job_and_give_the_bytes_of_one(
    tiny_model: Path, data: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    outcome = run_on_ray(config(tiny_model, data, tmp_path / "out"), Nobody())
    assert outcome.summary["records"]["scored"] == 1200
    assert_same(tmp_path / "out", expected)
    # As the one block Ray Data makes of such a file it would occupy one of them.
    print(num_workers(tmp_path / "out"), "workers had parts")
    assert num_workers(tmp_path / "out") > 1


@real
@pytest.mark.usefixtures("cluster")
def test_killed_workers_are_started_again_and_another_number_goes_on(
    tiny_model: Path, data: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    out = tmp_path / "out"

    def kill_one() -> None:
        while not (living := living_workers(out / STATE_FOLDER / parts.FOLDER, now=time.time())):
            time.sleep(0.05)
        os.kill(living[0].process, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    run_on_ray(config(tiny_model, data, out, workers=2), Nobody())
    killer.join()
    assert_same(out, expected)


@real
@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_is_told_as_by_one_process(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("broken\n")
    with pytest.raises(InputError, match="not one record is usable") as caught:
        run_on_ray(config(tiny_model, data, tmp_path / "out", workers=1), Nobody())
    assert caught.value.code == "E_INPUT_UNUSABLE"

"""Kill a training job at random moments, again and again, and compare what it leaves with an undisturbed one.

Like test_kills: a parent that has imported everything forks a child a run. The moments reach from reading to writing
the adapter, so some fall into the writing of a checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

NUM_KILLS = 40
SEED = int.from_bytes(os.urandom(2), "big")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def job(model: Path, data: Path, out: Path) -> None:
    """Run the job in a forked child; never returns."""
    import torch

    from fam_engine.cli import main

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    settings = {
        "--model": model,
        "--data": data,
        "--out": out,
        "--steps": 14,
        "--batch-size": 4,
        "--max-tokens-per-batch": 128,
        "--dropout": 0.1,
        "--learning-rate": 0.01,
        "--validation-share": 0.2,
        "--validate-every": 4,
        "--save-every": 3,
        "--rank": 4,
    }
    flags = [str(word) for pair in settings.items() for word in pair]
    main.sys.argv = ["fam-engine", "train", *flags, "--quiet"]
    try:
        main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    os._exit(code)


def import_all() -> None:
    """Import before the first fork what takes seconds, so that kills fall into the job's own work."""
    import bitsandbytes  # noqa: F401
    import torch._dynamo  # noqa: F401 - torch's optimizers import it

    import fam_engine.jobs.training.job  # noqa: F401


def start(model: Path, data: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        job(model, data, out)
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def steps_of(out: Path) -> list[dict[str, Any]]:
    """Give the log without the time each step took; floats are compared to the last bit."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


def assert_same(out: Path, whole: Path) -> None:
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "fam_engine.json",
        "README.md",
    ):
        found, expected = ((folder / "adapter" / name).read_bytes() for folder in (out, whole))
        assert found == expected, (name, SEED)
    assert (out / "quarantine.jsonl").read_bytes() == (whole / "quarantine.jsonl").read_bytes()
    assert steps_of(out) == steps_of(whole), SEED
    assert not [path for path in out.iterdir() if path.name.endswith((".partial", ".old"))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = random.Random(0)
    file = tmp_path / "data.jsonl"
    with file.open("w") as lines:
        for number in range(30):
            words = " ".join(rng.choice(["one", "two", "three"]) for _ in range(rng.randint(1, 6)))
            record = {"prompt": f"question {number // 2}\n", "response": words}
            lines.write(json.dumps(record) + "\n" + ("broken\n" if number % 10 == 7 else ""))
    return file


def test_a_killed_job_leaves_what_an_undisturbed_one_does(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    import_all()
    whole = tmp_path / "whole"
    assert finish(start(tiny_model, data, whole)) == 3
    began = time.perf_counter()
    assert finish(start(tiny_model, data, tmp_path / "timed")) == 3
    duration = time.perf_counter() - began
    assert_same(tmp_path / "timed", whole)
    rng, kills, runs = random.Random(SEED), 0, 0
    while kills < NUM_KILLS:
        runs += 1
        out = tmp_path / f"killed-{runs}"
        code = None
        while code != 3:
            child = start(tiny_model, data, out)
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0.05, 1.0) * duration)
                os.kill(child, signal.SIGKILL)
            code = finish(child)
            assert code in (3, -signal.SIGKILL), (code, SEED)
            kills += code == -signal.SIGKILL
        assert_same(out, whole)
    print(f"{kills} kills, {runs} runs of {duration:.1f} s equal, seed {SEED}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_a_checkpoint_of_the_moment(
    tiny_model: Path, data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    import_all()
    assert finish(start(tiny_model, data, tmp_path / "whole")) == 3
    out = tmp_path / "stopped"
    child = start(tiny_model, data, out)
    while not (out / "log.jsonl").exists():  # from then on steps are done
        time.sleep(0.005)
    os.kill(child, number)
    found = finish(child)
    # A small job may have been done before the signal was looked at.
    assert found in (code, 3)
    assert (out / "adapter").exists() == (found == 3)
    assert finish(start(tiny_model, data, out)) == 3
    assert_same(out, tmp_path / "whole")

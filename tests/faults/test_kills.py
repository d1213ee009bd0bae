"""Kill a scoring job at random moments, again and again, and compare its table with an undisturbed one.

A parent that has imported everything forks a child a run: a real process with the real job, dead by SIGKILL after a
random time, without paying for `import torch` each time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

NUM_KILLS = 60
SEED = int.from_bytes(os.urandom(2), "big")

pytestmark = pytest.mark.faults


def job(model: Path, data: Path, out: Path) -> None:
    """Run the job in a forked child; never returns."""
    import torch

    from fam_engine.cli import main

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    arguments = ["--model", str(model), "--data", str(data), "--out", str(out), "--quiet"]
    main.sys.argv = ["fam-engine", "score", *arguments, "--max-tokens-per-batch", "128"]
    try:
        main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    os._exit(code)


def start(model: Path, data: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        job(model, data, out)
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = random.Random(0)
    file = tmp_path / "data.jsonl"
    with file.open("w") as lines:
        for number in range(120):
            words = " ".join(rng.choice(["one", "two", "three"]) for _ in range(rng.randint(1, 12)))
            record = {"prompt": f"question {number // 2}\n", "response": words}
            lines.write(json.dumps(record) + "\n" + ("broken\n" if number % 40 == 7 else ""))
    return file


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_job_ends_with_the_table_of_an_undisturbed_one(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    import torch  # noqa: F401 - imported before the first fork

    import fam_engine.jobs.scoring.job  # noqa: F401

    began = time.perf_counter()
    assert finish(start(tiny_model, data, tmp_path / "whole")) == 3
    duration = time.perf_counter() - began
    rng, kills, tables = random.Random(SEED), 0, 0
    while kills < NUM_KILLS:
        tables += 1
        out = tmp_path / f"killed-{tables}"
        code = None
        while code != 3:
            child = start(tiny_model, data, out)
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0.05, 1.0) * duration)
                os.kill(child, signal.SIGKILL)
            code = finish(child)
            assert code in (3, -signal.SIGKILL), (code, SEED)
            kills += code == -signal.SIGKILL
        for name in ("scores.parquet", "quarantine.jsonl"):
            expected = (tmp_path / "whole" / name).read_bytes()
            assert (out / name).read_bytes() == expected, (name, SEED)
    print(f"{kills} kills, {tables} tables equal, seed {SEED}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_ends_a_job_in_good_order(
    tiny_model: Path, data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    import fam_engine.jobs.scoring.job  # noqa: F401

    assert finish(start(tiny_model, data, tmp_path / "whole")) == 3
    out = tmp_path / "stopped"
    child = start(tiny_model, data, out)
    journal = out / ".fam-engine" / "spool" / "index.bin"
    while not journal.exists():  # from then on there is something to keep
        time.sleep(0.005)
    os.kill(child, number)
    found = finish(child)
    # A small job may have been done before the signal was looked at.
    assert found in (code, 3)
    assert (out / "scores.parquet").exists() == (found == 3)
    assert finish(start(tiny_model, data, out)) == 3
    expected = (tmp_path / "whole" / "scores.parquet").read_bytes()
    assert (out / "scores.parquet").read_bytes() == expected

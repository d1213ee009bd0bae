"""Jobs that many processes share: killed at random moments, gone on with by other numbers of them, ended by one.

What is left is compared with what one undisturbed process leaves: tables byte by byte, numbers bit by bit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fam_engine.jobs.journal import STATE_FOLDER, is_alive
from fam_engine.jobs.scoring.sharing.claims import living_workers
from fam_engine.jobs.scoring.sharing.parts import FOLDER
from tests.faults.conftest import Whole
from tests.faults.forking import (
    COUNT,
    FAIL_ON,
    KILLED,
    SIGNAL,
    TEAR,
    Run,
    at_once,
    faults,
    run,
    sample,
)
from tests.faults.small_jobs import OUT, SmallJob, contents, leftovers, shared_job

NUM_KILLS = 40
MOST_WORKERS = 4
SEED = int.from_bytes(os.urandom(2), "big")

pytestmark = pytest.mark.faults
AnyWhole = Callable[[SmallJob], Whole]


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    return shared_job(model, tmp_path_factory.mktemp("shared"))


def of_shard(job: SmallJob, shard: str, out: Path) -> list[str]:
    """Give the command line of a shard, wherever it runs."""
    return [*(str(out) if word == OUT else word for word in job.line), "--shard", shard]


def assert_ends(job: SmallJob, folder: Path, whole: Whole, where: object) -> None:
    """End a job by one process, hold what is left against an undisturbed run, and make room."""
    ended = run(job.line, folder)
    assert ended.code == job.finished, (where, ended, SEED)
    assert contents(folder / OUT) == whole.contents, (where, SEED)
    assert not leftovers(folder / OUT), (where, SEED)
    assert not (folder / OUT / STATE_FOLDER / FOLDER).exists()
    shutil.rmtree(folder)


def kill_some(runs: list[Run], seconds: float, rng: random.Random) -> list[int]:
    """Kill most of some runs at random moments; give the exit codes of all."""
    moments = sorted(
        (rng.uniform(0.05, 1.5) * seconds, number)
        for number in range(len(runs))
        if rng.random() < 0.75
    )
    began = time.monotonic()
    for moment, number in moments:
        time.sleep(max(began + moment - time.monotonic(), 0.0))
        runs[number].signal(-KILLED)
    return [one.wait().code for one in runs]


def test_shards_killed_at_random_moments_and_resumed_by_other_numbers(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    undisturbed = whole(job)
    rng, kills, tables = random.Random(SEED), 0, 0
    while kills < NUM_KILLS:
        tables += 1
        folder = tmp_path / str(tables)
        folder.mkdir()
        codes = [KILLED]
        while any(codes):
            num = rng.randint(1, MOST_WORKERS)
            runs = [
                Run(of_shard(job, f"{i}/{num}", folder / OUT), tmp_path / f"{tables}-{i}")
                for i in range(1, num + 1)
            ]
            codes = kill_some(runs, undisturbed.seconds, rng)
            assert set(codes) <= {0, KILLED}, (codes, SEED)
            kills += codes.count(KILLED)
        assert_ends(job, folder, undisturbed, f"table {tables}")
    print(f"{kills} kills of shards, {tables} tables equal, seed {SEED}")


def test_workers_that_share_everything_and_are_killed(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    """All have the shard 1/1, so one that lives takes up what the dead have left."""
    undisturbed = whole(job)
    rng = random.Random(SEED)
    for table in range(4):
        folder = tmp_path / str(table)
        folder.mkdir()
        codes = [KILLED]
        while all(codes):
            line = of_shard(job, "1/1", folder / OUT)
            runs = [Run(line, tmp_path / f"{table}-{number}") for number in range(3)]
            codes = kill_some(runs, undisturbed.seconds, rng)
            assert set(codes) <= {0, KILLED}, (codes, SEED)
        assert_ends(job, folder, undisturbed, f"table {table}")


@pytest.mark.parametrize("how", [SIGNAL, TEAR], ids=["before", "within"])
def test_a_shard_killed_at_calls_that_change_the_folder(
    job: SmallJob, whole: AnyWhole, tmp_path: Path, how: int
) -> None:
    line = [*job.line, "--shard", "1/1"]
    counted = tmp_path / "counted"
    num_calls = run(line, counted, faults(counted / OUT, COUNT)).num_calls

    def kill_at(number: int) -> bool:
        folder = tmp_path / str(number)
        ended = run(line, folder, faults(folder / OUT, how, number))
        assert ended.code in (KILLED, 0), (number, ended, SEED)
        again = run(line, folder)
        assert again.code == 0, (number, again, SEED)
        assert_ends(job, folder, whole(job), f"call {number}")
        return ended.code == KILLED

    assert any(at_once(kill_at, sample("score", num_calls, SEED)))


def test_the_end_killed_at_calls_that_change_the_folder(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    for shard in ("2/3", "1/3", "3/3"):
        assert run([*job.line, "--shard", shard], shared).code == 0
    counted = tmp_path / "counted"
    shutil.copytree(shared, counted, symlinks=True)
    num_calls = run(job.line, counted, faults(counted / OUT, COUNT)).num_calls

    def kill_at(number: int) -> bool:
        folder = tmp_path / str(number)
        shutil.copytree(shared, folder, symlinks=True)
        ended = run(job.line, folder, faults(folder / OUT, SIGNAL, number))
        assert ended.code in (KILLED, job.finished), (number, ended, SEED)
        assert_ends(job, folder, whole(job), f"call {number}")
        return ended.code == KILLED

    assert any(at_once(kill_at, sample("score", num_calls, SEED)))


def test_a_disk_that_is_full_ends_a_shard_with_one_line(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    line = [*job.line, "--shard", "1/1"]
    counted = tmp_path / "counted"
    num_calls = run(line, counted, faults(counted / OUT, COUNT)).num_calls

    def fail_at(number: int) -> bool:
        folder = tmp_path / str(number)
        ended = run(line, folder, faults(folder / OUT, FAIL_ON, number, errno.ENOSPC))
        assert (ended.code, len(ended.errors.splitlines())) in ((0, 0), (5, 1)), (number, ended)
        assert run(line, folder).code == 0, (number, SEED)
        assert_ends(job, folder, whole(job), f"call {number}")
        return ended.code == 5

    assert any(at_once(fail_at, sample("score", num_calls, SEED)))


@contextlib.contextmanager
def launched(job: SmallJob, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a job with two workers, each a process of its own."""
    folder.mkdir()
    program = "import sys; from fam_engine.cli.main import main; main()"
    line = [*job.line, "--launcher", "local", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *line],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_worker(out: Path) -> int:
    """Wait until a job has a worker; give the number of its process."""
    parts = out / STATE_FOLDER / FOLDER
    for _ in range(1200):
        for holder in living_workers(parts, now=time.time()):
            return holder.process
        time.sleep(0.1)
    raise AssertionError("never a worker")


def children_of(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


def test_a_launched_worker_that_is_killed_is_replaced_by_the_others(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    folder = tmp_path / "launched"
    with launched(job, folder) as process:
        os.kill(wait_for_worker(folder / OUT), signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == job.finished, errors
    assert contents(folder / OUT) == whole(job).contents


def test_workers_end_with_whoever_started_them(
    job: SmallJob, whole: AnyWhole, tmp_path: Path
) -> None:
    folder = tmp_path / "launched"
    with launched(job, folder) as process:
        wait_for_worker(folder / OUT)
        workers = children_of(process.pid)
        process.kill()
    assert len(workers) == 2
    for _ in range(1200):
        if not any(is_alive(worker) for worker in workers):
            break
        time.sleep(0.1)
    assert not any(is_alive(worker) for worker in workers)
    assert_ends(job, folder, whole(job), "killed with its workers")

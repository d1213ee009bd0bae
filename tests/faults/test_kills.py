"""Kill every long command with SIGKILL, at random moments and at every call that changes its folder.

What the last run leaves is compared with what an undisturbed one does: tables byte by byte, numbers bit by bit.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.forking import KILLED, NUM_AT_ONCE, SIGNAL, Run, at_once, faults, run, sample
from tests.faults.small_jobs import OUT, SmallJob, smaller
from tests.faults.trials import KILLS, assert_resumes, assert_same, meet

# At random moments, in all.
NUM_KILLS = {"score": 200, "train": 40, "generate": 24, "rewrite": 16, "eval": 16, "experiment": 10}
SEED = int.from_bytes(os.urandom(2), "big")

pytestmark = pytest.mark.faults
AnyWhole = Callable[[SmallJob], Whole]


@pytest.mark.parametrize("command", NUM_KILLS)
def test_kills_at_random_moments(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, command: str
) -> None:
    job, undisturbed = jobs[command], whole(jobs[command])

    def kill_some(worker: int) -> tuple[int, int]:
        rng, kills, tables = random.Random(SEED + worker), 0, 0
        quota = NUM_KILLS[command] // NUM_AT_ONCE
        while kills < quota:
            tables += 1
            folder = tmp_path / f"{worker}-{tables}"
            code = None
            while code != job.finished:
                running = Run(job.line, folder)
                if kills < quota:
                    # Some come too late: a result needs some kills, not all there are.
                    time.sleep(rng.uniform(0.05, 1.5) * undisturbed.seconds)
                    running.signal(-KILLED)
                code = running.wait().code
                assert code in (job.finished, KILLED), (command, code, SEED)
                kills += code == KILLED
            assert_same(job, folder, undisturbed, (f"table {tables}", SEED))
            shutil.rmtree(folder)
        return kills, tables

    counts = at_once(kill_some, range(NUM_AT_ONCE))
    kills, tables = (sum(numbers) for numbers in zip(*counts, strict=True))
    assert kills >= NUM_KILLS[command]
    print(f"{command}: {kills} kills, {tables} results equal, seed {SEED}")


@pytest.mark.parametrize("command", NUM_KILLS)
@pytest.mark.parametrize("way", KILLS)
def test_kills_at_calls_that_change_the_folder(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, command: str, way: str
) -> None:
    job = smaller(jobs[command])
    undisturbed = whole(job)

    def kill_at(number: int) -> str:
        return meet(job, undisturbed, tmp_path / str(number), way, number)

    numbers = sample(command, undisturbed.num_calls, SEED)
    outcomes = Counter(at_once(kill_at, numbers))
    print(f"{command}, {way}: {outcomes} of {undisturbed.num_calls} calls, seed {SEED}")
    # One of the last may be missing another time: figures of time are kept now and then.
    assert outcomes["killed"] >= len(numbers) - 1


@pytest.mark.parametrize("command", NUM_KILLS)
def test_three_resumes_in_a_row(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, command: str
) -> None:
    job, undisturbed = jobs[command], whole(jobs[command])
    rng = random.Random(SEED)
    folder = tmp_path / "killed"
    for _ in range(4):
        # Early enough that four together do not finish the job.
        number = rng.randint(2, undisturbed.num_calls // 6)
        ended = run(job.line, folder, faults(folder / OUT, SIGNAL, number))
        assert ended.code == KILLED, (number, SEED)
    assert_resumes(job, folder, undisturbed, ("resumed thrice", SEED))


@pytest.mark.parametrize("budget", [64, 512])
def test_a_resume_with_other_batches(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, budget: int
) -> None:
    """What is left is scored in another order and company; only the budget the summary names differs."""
    job, folder = jobs["score"], tmp_path / "killed"
    number = whole(job).num_calls // 2
    assert run(job.line, folder, faults(folder / OUT, SIGNAL, number)).code == KILLED
    other = job.but(max_tokens_per_batch=budget)
    expected = whole(other).contents
    assert expected["scores.parquet"] == whole(job).contents["scores.parquet"]
    assert_resumes(other, folder, whole(other), budget)


@pytest.mark.parametrize(
    ("command", "settings", "named"),
    [
        ("score", {"seed": 7}, "seed = 0, this one has 7"),
        ("train", {"max_tokens_per_batch": 64}, "max_tokens_per_batch = 128, this one has 64"),
        ("generate", {"samples": 3}, "samples = 2, this one has 3"),
    ],
)
def test_a_resume_that_would_mix_results_is_refused(
    jobs: dict[str, SmallJob],
    whole: AnyWhole,
    tmp_path: Path,
    command: str,
    settings: dict[str, object],
    named: str,
) -> None:
    job, folder = jobs[command], tmp_path / "killed"
    number = whole(job).num_calls // 2
    assert run(job.line, folder, faults(folder / OUT, SIGNAL, number)).code == KILLED
    refused = run(job.but(**settings).line, folder)
    assert (refused.code, len(refused.errors.splitlines())) == (2, 1), refused
    assert refused.errors.startswith("error[E_RESUME_MISMATCH]")
    assert named in refused.errors
    assert_resumes(job, folder, whole(job), "after a refusal")

"""One trial: a small job meets one fault at one call that changes its folder, and comes out right all the same.

In: a job, what an undisturbed run of it leaves, a fault, the number of the call. Out: how the disturbed run ended. A
failing disk ends a job with exit code 5 and one line and leaves no temporary file; whatever the fault, the same command
once more leaves what an undisturbed run does, to the last bit.
"""

from __future__ import annotations

import errno
import shutil
import signal
from pathlib import Path
from typing import Literal

from tests.faults.conftest import Whole
from tests.faults.forking import (
    FAIL_ON,
    FAIL_ONCE,
    KILLED,
    SIGNAL,
    TEAR,
    Ended,
    faults,
    run,
)
from tests.faults.small_jobs import OUT, SmallJob, contents, leftovers

# What the disk says, and whether it stays so until the process ends.
SAYINGS = {
    "full": (FAIL_ON, errno.ENOSPC),
    "over-quota": (FAIL_ON, errno.EDQUOT),
    "read-only": (FAIL_ON, errno.EROFS),
    "error-once": (FAIL_ONCE, errno.EIO),
}
KILLS = {"killed-before": (SIGNAL, signal.SIGKILL), "killed-within": (TEAR, signal.SIGKILL)}
FAULTS = {**SAYINGS, **KILLS}

# Dead, ended with exit code 5, done because only tidying up failed, done before that call.
Outcome = Literal["killed", "refused", "harmless", "beyond"]


def meet(job: SmallJob, whole: Whole, folder: Path, fault: str, number: int) -> Outcome:
    """Let a run meet a fault, make sure of how it ends and of what is left, run it again and compare.

    Args:
        job: The job.
        whole: Its undisturbed run.
        folder: Where to run it; gone afterwards.
        fault: One of `FAULTS`.
        number: The call that meets it, from 1.
    """
    how, what = FAULTS[fault]
    where = f"{fault} at call {number}"
    ended = run(job.line, folder, faults(folder / OUT, how, number, what))
    outcome = _outcome(job, ended, number, where)
    # From a disk that is read-only nothing can be removed, and the dead do not tidy up.
    if outcome != "killed" and what != errno.EROFS:
        assert not leftovers(folder / OUT), (job.command, where)
    assert_resumes(job, folder, whole, where)
    shutil.rmtree(folder)
    return outcome


def _outcome(job: SmallJob, ended: Ended, number: int, where: str) -> Outcome:
    if ended.code == KILLED:
        return "killed"
    if ended.code != job.finished:
        assert_storage_error(ended, where)
        return "refused"
    assert not ended.errors, (job.command, where, ended)
    return "harmless" if ended.num_calls >= number else "beyond"


def assert_storage_error(ended: Ended, where: object) -> None:
    """Hold an end against what a disk's fault must lead to."""
    lines = ended.errors.splitlines()
    assert (ended.code, len(lines)) == (5, 1), (where, ended)
    assert lines[0].startswith("error[E_STORAGE]"), (where, ended)


def assert_resumes(job: SmallJob, folder: Path, whole: Whole, where: object) -> None:
    """Run a job to its end, undisturbed, and compare what it leaves."""
    ended = run(job.line, folder)
    assert ended.code == job.finished, (job.command, where, ended)
    assert_same(job, folder, whole, where)


def assert_same(job: SmallJob, folder: Path, whole: Whole, where: object) -> None:
    """Hold what a finished job has left against what its undisturbed run did."""
    found = contents(folder / OUT)
    assert found.keys() == whole.contents.keys(), (job.command, where)
    different = [name for name in found if found[name] != whole.contents[name]]
    assert not different, (job.command, where, different)
    assert not leftovers(folder / OUT), (job.command, where)

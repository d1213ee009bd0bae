"""Two runs into one folder: one works, the other leaves at once and says who holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.forking import Run
from tests.faults.small_jobs import OUT, SmallJob, contents, smaller

NUM_PAIRS = 100

pytestmark = pytest.mark.faults
AnyWhole = Callable[[SmallJob], Whole]


def test_of_two_runs_at_once_one_works(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path
) -> None:
    job = smaller(jobs["score"])
    expected = whole(job).contents
    refusals = 0
    for number in range(NUM_PAIRS):
        folder = tmp_path / str(number)
        # Their errors must not meet in one file.
        line = [str(folder / OUT) if word == OUT else word for word in job.line]
        pair = [Run(line, tmp_path / f"{number}-{side}") for side in "ab"]
        ended = [one.wait() for one in pair]
        codes = sorted(one.code for one in ended)
        # The second may also come when the first is done, and find nothing left to do.
        assert codes in ([0, 6], [0, 0]), ended
        refusals += codes == [0, 6]
        for mine, other in (pair, pair[::-1]):
            found = mine.wait()
            if found.code == 6:
                assert len(found.errors.splitlines()) == 1
                assert found.errors.startswith("error[E_LOCKED]")
                assert f"is in use by process {other.pid} on " in found.errors
        got = contents(folder / OUT)
        assert got["scores.parquet"] == expected["scores.parquet"]
    assert refusals >= 0.5 * NUM_PAIRS
    print(f"{refusals} of {NUM_PAIRS} pairs met")

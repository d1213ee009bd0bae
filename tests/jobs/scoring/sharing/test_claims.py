from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.scoring.sharing import claims
from fam_engine.jobs.scoring.sharing.claims import (
    STALE_SECONDS,
    PartCounts,
    Worker,
    claimants,
    count_parts,
    living_workers,
    undone_parts,
)

NAMES = [f"{number:06}" for number in range(40)]
ROOT = Path(__file__).parents[4]


def worker(parts: Path) -> Worker:
    return Worker(parts, {}, "")


def pretend_elsewhere(one: Worker, place: str = "elsewhere") -> None:
    """Make a worker one of another machine, which the kernel here knows nothing of."""
    (one.folder / STATE_FOLDER / "lock").write_text(f"process {2**22 + 1} on {place}")


def died(parts: Path, *names: str) -> str:
    """Let a process claim something and die; give its worker's name."""
    program = f"""
import os
from pathlib import Path
from fam_engine.jobs.scoring.sharing.claims import Worker
one = Worker(Path({str(parts)!r}), {{}}, "").__enter__()
assert [one.claim([name]).name for name in {names!r}] == {list(names)!r}
print(one.name, flush=True)
os._exit(9)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 9, ended.stderr
    return ended.stdout.strip()


def test_of_many_workers_at_once_one_gets_each_part(tmp_path: Path) -> None:
    got: list[list[str]] = []

    def work() -> None:
        mine = []
        with worker(tmp_path) as one:
            ready.wait()
            while claim := one.claim(NAMES):
                assert claim.left_by is None
                mine.append(claim.name)
            got.append(mine)
            ready.wait()  # who leaves frees what it has claimed

    ready = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for mine in got for name in mine) == NAMES
    assert len([mine for mine in got if mine]) > 1


def test_what_a_dead_worker_left_is_taken_up_once(tmp_path: Path) -> None:
    name = died(tmp_path, NAMES[0], NAMES[1])
    with worker(tmp_path) as one, worker(tmp_path) as two:
        first = one.claim(NAMES)
        second = two.claim(NAMES)
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == (NAMES[0], NAMES[1])
        assert first.left_by == second.left_by == tmp_path / "workers" / name
        assert one.claim(NAMES[:2]) is None
        assert {path.name for path in claimants(tmp_path)} == {name, one.name, two.name}


def test_who_leaves_in_good_order_frees_what_it_has_claimed(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        assert one.claim(NAMES) is not None
        pretend_elsewhere(one)
    with worker(tmp_path) as two:
        claim = two.claim(NAMES)
        assert claim is not None
        assert claim.left_by == one.folder


@pytest.mark.parametrize("place", ["elsewhere", f"{socket.gethostname()} in namespace 1"])
def test_a_worker_of_another_machine_or_container_is_alive_as_long_as_its_heart_beats(
    tmp_path: Path, place: str
) -> None:
    with worker(tmp_path) as far, worker(tmp_path) as near:
        pretend_elsewhere(far, place)
        assert far.claim(NAMES[:1]) is not None
        beat = far.folder / "beat"
        now = beat.stat().st_mtime
        os.utime(beat, (now, now - STALE_SECONDS + 30))
        assert near.claim(NAMES[:1]) is None
        os.utime(beat, (now, now - STALE_SECONDS - 30))
        claim = near.claim(NAMES[:1])
        assert claim is not None
        assert claim.left_by == far.folder
        # It was only late. Its heart beats again, and it keeps what nobody has taken up.
        beat.touch()
        assert far.claim(NAMES[1:2]) is not None
        assert near.claim(NAMES[:2]) is None


def test_hearts_beat_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT_SECONDS", 0.01)
    with worker(tmp_path) as one:
        beat = one.folder / "beat"
        for _ in range(3):
            os.utime(beat, (0, 0))
            for _ in range(500):
                if beat.stat().st_mtime > 0:
                    break
                threading.Event().wait(0.01)
            assert beat.stat().st_mtime > 0
    assert not beat.exists()


def test_parts_are_counted_by_their_state(tmp_path: Path) -> None:
    names = NAMES[:6]
    assert count_parts(tmp_path, names, now=0.0) == PartCounts(0, 0, 0, 6)
    with worker(tmp_path) as one:
        for name in names[:2]:
            assert one.claim([name]) is not None
        one.mark_done(names[0])
        died(tmp_path, names[2], names[3])
        now = (one.folder / "beat").stat().st_mtime
        assert count_parts(tmp_path, names, now=now) == PartCounts(1, 1, 2, 2)
        assert undone_parts(tmp_path, names) == names[1:]
        (holder,) = living_workers(tmp_path, now=now)
        assert holder.process == os.getpid()
    assert living_workers(tmp_path, now=now) == []
    assert count_parts(tmp_path, names, now=now) == PartCounts(1, 0, 3, 2)

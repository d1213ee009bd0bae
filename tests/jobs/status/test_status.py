from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fam_engine.errors import CorruptStateError, InputError
from fam_engine.jobs import peek
from fam_engine.jobs.journal import STATE_FOLDER, Journal
from fam_engine.jobs.scoring.entries import SCHEMA
from fam_engine.jobs.status.job import read_status

ROOT = Path(__file__).parents[3]


def score_journal(out: Path, *, done: int, total: int = 3) -> None:
    """Leave what a scoring leaves that ended after some of its records."""
    with Journal(out, {"boundary": "separate"}, SCHEMA) as journal, journal.commit() as db:
        for position in range(total):
            db.execute("INSERT INTO records (position, entry) VALUES (?, ?)", (position, position))
        journal.put("ingested", {"records": total, "entries": total})
        journal.put("spent", (10, 2.5))
        for entry in range(done):
            db.execute("INSERT INTO results (entry) VALUES (?)", (entry,))
        journal.quarantine([("a.jsonl", 4, 0, "E_JSON", "no")])


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_stopped_job_says_how_far_it_came_and_is_left_as_it_is(tmp_path: Path) -> None:
    score_journal(tmp_path, done=2)
    before = content(tmp_path)
    status = read_status(tmp_path)
    assert (status.command, status.state, status.holder) == ("score", "stopped", None)
    assert (status.progress.done, status.progress.total) == (2, 3)
    assert status.progress.seconds == 2.5
    assert status.quarantined == {"E_JSON": 1}
    assert "run the same command again" in status.advice
    assert content(tmp_path) == before


def test_a_running_job_is_seen_and_its_lock_never_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_journal(tmp_path, done=1)
    with Journal(tmp_path, {"boundary": "separate"}, SCHEMA) as journal:
        with journal.commit() as db:
            db.execute("INSERT INTO results (entry) VALUES (2)")
        monkeypatch.setattr("fcntl.flock", None)
        status = read_status(tmp_path)
        # What is still in the write-ahead log counts too.
        assert status.progress.done == 2
        assert status.state == "running"
        assert status.holder is not None
        assert status.holder.process == os.getpid()
        assert f"kill {os.getpid()}" in status.advice


def test_the_log_a_dead_process_left_is_read_and_left(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from tests.jobs.status.test_status import SCHEMA, Journal, score_journal
score_journal(Path({str(tmp_path)!r}), done=1)
journal = Journal(Path({str(tmp_path)!r}), {{"boundary": "separate"}}, SCHEMA)
with journal.commit() as db:
    db.execute("INSERT INTO results (entry) VALUES (2)")
os._exit(9)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT)
    assert ended.returncode == 9
    before = content(tmp_path)
    assert f"{STATE_FOLDER}/journal.sqlite-wal" in before
    status = read_status(tmp_path)
    assert (status.state, status.progress.done) == ("stopped", 2)
    # SQLite's index of the log is made anew by whoever comes first.
    index = f"{STATE_FOLDER}/journal.sqlite-shm"
    after = content(tmp_path)
    assert {name for name in before if before[name] != after[name]} <= {index}
    assert before.keys() == after.keys()


def test_a_process_number_used_anew_does_not_pass_for_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_journal(tmp_path, done=1)
    lock = tmp_path / STATE_FOLDER / "lock"
    lock.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    if Path("/proc/locks").exists():
        assert read_status(tmp_path).state == "stopped"
    # Without the kernel's list the number has to do.
    monkeypatch.setattr(peek, "_LOCKS", tmp_path / "none")
    assert read_status(tmp_path).state == "running"
    lock.write_text(f"process {2**22 + 1} on {socket.gethostname()}")
    assert read_status(tmp_path).state == "stopped"
    # Another container of this machine numbers its processes by itself.
    lock.write_text(f"process {2**22 + 1} on {socket.gethostname()} in namespace 1")
    assert read_status(tmp_path).state == "unknown"
    lock.write_text("process 1 on elsewhere")
    status = read_status(tmp_path)
    assert status.state == "unknown"
    assert "see on elsewhere" in status.advice


def test_a_job_whose_process_died_in_a_batch_says_so(tmp_path: Path) -> None:
    score_journal(tmp_path, done=1)
    with Journal(tmp_path, {"boundary": "separate"}, SCHEMA) as journal:
        journal.take_off([1, 2])
    assert "died with 2 records in flight" in read_status(tmp_path).advice


def test_a_training_that_died_says_from_which_step_it_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path, {"train_on": "response"}, SCHEMA) as journal, journal.commit():
        journal.put("ingested", {"records": 9, "entries": 9})
        journal.put("num_steps", 8)
    lines = [json.dumps({"step": step, "seconds": 1.0}) + "\n" for step in range(1, 5)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    status = read_status(tmp_path)
    assert (status.state, status.progress.done, status.progress.total) == ("stopped", 4, 8)
    assert "begins anew" in status.advice
    for step in (2, 10):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert "goes on from step 10, its newest checkpoint" in read_status(tmp_path).advice


def test_an_experiment_says_which_step_it_is_at(tmp_path: Path) -> None:
    Journal(tmp_path, {"command": "experiment"}, "").__exit__()
    done, begun = (tmp_path / "steps" / kind / "x" for kind in ("rewrite", "score"))
    done.mkdir(parents=True)
    (done / "step.json").write_text(json.dumps({"seconds": 4.0}))
    score_journal(begun, done=1)
    status = read_status(tmp_path)
    assert (status.command, status.state) == ("experiment", "stopped")
    assert (status.progress.done, status.progress.total) == (1, None)
    assert status.step is not None
    assert (status.step.command, status.step.progress.done) == ("score", 1)
    (begun / "step.json").write_text(json.dumps({"seconds": 1.0}))
    (tmp_path / "results.json").write_text("{}")
    assert read_status(tmp_path).state == "finished"
    os.utime(begun / "step.json", (2e9, 2e9))  # a step newer than the results: the study changed
    assert read_status(tmp_path).state == "stopped"


def test_a_file_is_no_folder_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"a\.jsonl: is a file, expected the folder of a job"):
        read_status(tmp_path / "a.jsonl")


def test_folders_without_a_readable_job_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no job"):
        read_status(tmp_path)
    file = tmp_path / STATE_FOLDER / "journal.sqlite"
    Journal(tmp_path, {"rule": "x"}, "CREATE TABLE choices (n)").__exit__()
    with pytest.raises(InputError, match="another command"):
        read_status(tmp_path)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(CorruptStateError, match="does not read back"):
        read_status(tmp_path)
    file.unlink()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE other (n)")
    db.close()
    with pytest.raises((InputError, CorruptStateError)):
        read_status(tmp_path)

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fam_engine.errors import (
    CorruptStateError,
    DeviceError,
    FamEngineError,
    InputError,
    LockedError,
    ModelRefusedError,
    StorageError,
    UsageError,
)
from fam_engine.jobs.journal import DEATHS_TO_BLAME, STATE_FOLDER, Journal, claimed

KEY = {"model": "a", "seed": 0}
SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT);"


def fail_midway(journal: Journal) -> None:
    with journal.commit() as db:
        db.execute("INSERT INTO things VALUES ('lost')")
        raise RuntimeError


def test_what_is_committed_is_kept_and_what_fails_is_not(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        with journal.commit() as db:
            journal.put("n", {"a": [1]})
            db.execute("INSERT INTO things VALUES ('kept')")
        with pytest.raises(RuntimeError):
            fail_midway(journal)
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        assert journal.get("n") == {"a": [1]}
        assert journal.get("m") is None
        assert journal.db.execute("SELECT name FROM things").fetchall() == [("kept",)]


def test_a_job_that_has_lost_a_file_is_finished_only_once_that_is_said_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "table"
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        assert journal.finished([file]) is None
        with journal.commit():
            journal.put("finished", {"n": 1})
        file.touch()
        assert journal.finished([file]) == {"n": 1}
        file.unlink()
        assert journal.finished([file]) is None
        file.touch()  # the rest of what a run wrote that died before it said so
        assert journal.finished([file]) is None


def refuse(journal: Journal, kind: type[FamEngineError] = InputError) -> None:
    with journal.beginning():
        raise kind("no", code="E_NO")


@pytest.mark.parametrize("kind", [InputError, UsageError, DeviceError, ModelRefusedError])
def test_what_is_refused_in_the_run_that_read_the_input_frees_the_folder(
    tmp_path: Path, kind: type[FamEngineError]
) -> None:
    """Settings that the plan or the model refuses can be mended."""
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        with journal.commit():
            journal.put("ingested", 1)
        with pytest.raises(kind):
            refuse(journal, kind)
    with Journal(tmp_path, {**KEY, "seed": 1}, SCHEMA) as journal:
        assert journal.get("ingested") is None


def test_input_that_is_refused_frees_the_folder_unless_it_was_read_before(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY, SCHEMA) as journal, pytest.raises(InputError):
        refuse(journal)
    with Journal(tmp_path, {**KEY, "seed": 1}, SCHEMA) as journal, journal.commit() as db:
        journal.put("ingested", 1)
        db.execute("INSERT INTO things VALUES ('computed')")
    with Journal(tmp_path, {**KEY, "seed": 1}, SCHEMA) as journal, pytest.raises(InputError):
        refuse(journal)
    with Journal(tmp_path, {**KEY, "seed": 1}, SCHEMA) as journal:
        assert journal.db.execute("SELECT name FROM things").fetchall() == [("computed",)]


def write_half(folder: Path) -> None:
    with claimed(folder, KEY, ("table", "summary")):
        (folder / "table").write_text("new")
        raise RuntimeError


def test_files_that_were_not_all_written_go_and_earlier_ones_stay_the_jobs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path)
    other = KEY | {"seed": 1}
    with claimed(tmp_path, other, ("table", "summary")):
        (tmp_path / "summary").write_text("whole")
    with pytest.raises(UsageError, match="seed = 1, this one has 0"):
        write_half(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with claimed(tmp_path / "elsewhere", KEY, ("table", "summary")):
        (tmp_path / "elsewhere" / "summary").write_text("whole")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "table").exists()
    assert (tmp_path / "elsewhere" / "summary").read_text() == "whole"
    with pytest.raises(UsageError), Journal(tmp_path / "elsewhere", other, SCHEMA):
        pass


def test_another_job_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    Journal(tmp_path, KEY, SCHEMA).__exit__(None, None, None)
    with pytest.raises(UsageError, match="seed = 0, this one has 1"):
        Journal(tmp_path, {**KEY, "seed": 1}, SCHEMA)
    # The refusal must not keep the folder locked.
    Journal(tmp_path, KEY, SCHEMA).__exit__(None, None, None)


def test_the_job_of_another_command_is_refused_and_finds_its_journal_as_it_was(
    tmp_path: Path,
) -> None:
    def tables(journal: Journal) -> list[tuple[str]]:
        return journal.db.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()

    with Journal(tmp_path, KEY, SCHEMA) as journal:
        before = tables(journal)
    other = {**KEY, "temperature": 0}
    with pytest.raises(UsageError, match="holds the job of another command, or of another release"):
        Journal(tmp_path, other, "CREATE TABLE IF NOT EXISTS others (name TEXT)")
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        assert tables(journal) == before


HASHES = ["a" * 64, "b" * 64, "c" * 64]
NAMES = [[f"part-{number}.jsonl", 1000 + number] for number in range(9)]


@pytest.mark.parametrize(
    ("kept", "now", "said"),
    [
        (HASHES, ["a" * 64, "d" * 64, "e" * 64], "with other contents of file 2 of 3 in data ("),
        (HASHES[:1], HASHES[1:2], "with other contents of the file in data ("),
        (HASHES[:1], HASHES[:2], 'data = ["aaaaaaaaaaaa"], this one has ["aaaaaaaaaaaa", "bbbb'),
        (HASHES[0], HASHES[1], 'data = "aaaaaaaaaaaa", this one has "bbbbbbbbbbbb"'),
        ({}, {"prompt": "q"}, 'data = {}, this one has {"prompt": "q"}'),
        (
            NAMES,
            [*NAMES[:6], ["part-6.jsonl", 7], *NAMES[7:]],
            'data = ...], ["part-6.jsonl", 1006], ["part-7.jsonl", 1007], ["part-8...., '
            'this one has ...], ["part-6.jsonl", 7], ["part-7.jsonl", 1007], ["part-8.jso...',
        ),
    ],
)
def test_of_two_long_values_is_shown_where_they_differ(
    kept: object, now: object, said: str, tmp_path: Path
) -> None:
    Journal(tmp_path, {"data": kept}, SCHEMA).__exit__(None, None, None)
    with pytest.raises(UsageError) as refused:
        Journal(tmp_path, {"data": now}, SCHEMA)
    assert said in str(refused.value)


def test_a_second_process_is_locked_out_and_told_by_whom(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fam_engine.jobs.journal import Journal\n"
        f"Journal(Path({str(tmp_path)!r}), {KEY!r}, {SCHEMA!r})"
    )
    with Journal(tmp_path, KEY, SCHEMA):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "LockedError" in run.stderr
    assert f"process {os.getpid()}" in run.stderr
    assert LockedError.exit_code == 6


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="lock: cannot be locked") as caught:
        Journal(tmp_path, KEY, SCHEMA)
    assert caught.value.hint is not None
    assert "file locks" in caught.value.hint


def test_the_holder_is_named_who_has_just_taken_the_lock(tmp_path: Path) -> None:
    Journal(tmp_path, KEY, SCHEMA).__exit__(None, None, None)
    lock = tmp_path / STATE_FOLDER / "lock"
    host = socket.gethostname()
    for before in ("", f"process {2**22 + 1} on {host}"):  # beyond the largest number of a process
        lock.write_text(before)
        with lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            name = f"process {os.getpid()} on {host}"
            threading.Timer(0.1, lock.write_text, [name]).start()
            with pytest.raises(LockedError, match=f"is in use by {name}"):
                Journal(tmp_path, KEY, SCHEMA)


def test_a_damaged_state_is_named_as_such(tmp_path: Path) -> None:
    Journal(tmp_path, KEY, SCHEMA).__exit__(None, None, None)
    (tmp_path / STATE_FOLDER / "journal.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptStateError, match="does not read back"):
        Journal(tmp_path, KEY, SCHEMA)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Journal(tmp_path / "file" / "out", KEY, SCHEMA)


def test_a_record_that_kills_is_found_by_halves(tmp_path: Path) -> None:
    poison, deaths, blamed = 5, 0, []
    done: set[int] = set()
    while not blamed and deaths < 50:
        with Journal(tmp_path, KEY, SCHEMA) as journal:
            blamed = journal.examine_crash()
            suspects = journal.suspect_parties()
            rest = sorted(set(range(8)) - {e for party in suspects for e in party})
            for batch in [*suspects, rest]:
                todo = [entry for entry in batch if entry not in done]
                if not todo or blamed:
                    continue
                journal.take_off(todo)
                if poison in todo:
                    deaths += 1
                    break
                done.update(todo)
                with journal.commit():
                    journal.land(todo)
    assert blamed == [poison]
    assert done == set(range(8)) - {poison}
    # Three halvings of eight, then the record alone until it is blamed.
    assert deaths == 3 + DEATHS_TO_BLAME


def test_what_flies_behind_a_batch_stays_noted(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, "") as journal:
        journal.take_off([1, 2, 3])
        with journal.commit():
            journal.land([1], flying=[2, 3])
    with Journal(tmp_path, {}, "") as journal:
        assert journal.examine_crash() == []
        assert journal.suspect_parties() == [[2], [3]]


def test_an_orderly_end_blames_nobody(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY, SCHEMA) as journal:
        journal.take_off([1])
        journal.clear_flight()
        assert journal.examine_crash() == []
        assert journal.suspect_parties() == []

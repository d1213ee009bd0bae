"""Jobs shared by workers, in one process: shards in any order, resumes with other numbers, records that fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine.config import ScoreConfig
from fam_engine.errors import InputError, LockedError, StorageError, UsageError
from fam_engine.jobs.interrupts import Interrupted, Interrupts
from fam_engine.jobs.journal import DEATHS_TO_BLAME, STATE_FOLDER, Journal
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring import entries as pass_two
from fam_engine.jobs.scoring import forecast
from fam_engine.jobs.scoring.entries import SCHEMA, EntryScorer
from fam_engine.jobs.scoring.forecast import forecast_score
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.prepare import prepared
from fam_engine.jobs.scoring.sharing import claims, gathering, parts
from fam_engine.jobs.scoring.sharing import worker as worker_job
from fam_engine.jobs.scoring.sharing.claims import Worker
from fam_engine.jobs.scoring.sharing.worker import run_shard
from fam_engine.jobs.status.job import JobStatus, read_status
from fam_engine.measure.results import TokenFacts
from tests.jobs.scoring.sharing.test_local import Told
from tests.jobs.scoring.test_job import make_records, write

FILES = ("scores.parquet", "quarantine.jsonl", "report.html")
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_FEWEST_TOKENS", 200)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two answers to each prompt, and a line that is no record."""
    file = write(tmp_path / "data.jsonl", make_records(60))
    file.write_text(file.read_text() + "broken\n")
    return file


@pytest.fixture
def config(tiny_model: Path, data: Path, tmp_path: Path) -> Callable[..., ScoreConfig]:
    def make(out: str, **settings: Any) -> ScoreConfig:  # noqa: ANN401
        settings = {"precision": "fp32", "device": "cpu", "max_tokens_per_batch": 128, **settings}
        return ScoreConfig(model=str(tiny_model), data=(str(data),), out=tmp_path / out, **settings)

    return make


Make = Callable[..., ScoreConfig]


def one_process(make: Make, out: str, **settings: Any) -> JobOutcome:  # noqa: ANN401
    return run_score(make(out, **settings), Nobody())


def shards(make: Make, out: str, *which: str, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    summary: dict[str, Any] = {}
    for shard in which:
        summary = dict(run_shard(make(out, shard=shard, **settings), Nobody()).summary)
    return summary


def assert_same(tmp_path: Path, *outs: str, files: tuple[str, ...] = FILES) -> None:
    """All files of some jobs are equal, and what the summaries say of the records."""
    first, *others = (tmp_path / out for out in outs)
    for other in others:
        for name in files:
            assert (other / name).read_bytes() == (first / name).read_bytes(), (other, name)
        said = [json.loads((out / "summary.json").read_text()) for out in (first, other)]
        for summary in said:
            del summary["performance"], summary["settings"]["out"]
        assert said[0] == said[1]


@pytest.mark.parametrize(
    "order", [("1/1",), ("2/3", "3/3", "1/3"), tuple(f"{i}/40" for i in range(40, 0, -1))]
)
def test_shards_in_any_order_give_the_bytes_of_one_process(
    config: Make, tmp_path: Path, order: tuple[str, ...]
) -> None:
    one_process(config, "one")
    for number, shard in enumerate(order):
        summary = shards(config, "many", shard)
        assert (summary["done"] == summary["parts"]) == (number == len(order) - 1)
    assert 10 <= summary["parts"] <= 40
    assert not (tmp_path / "many" / "scores.parquet").exists()
    outcome = one_process(config, "many")
    assert outcome.num_quarantined == 1
    assert_same(tmp_path, "one", "many")
    assert not (tmp_path / "many" / STATE_FOLDER / parts.FOLDER).exists()


def test_the_last_process_computes_nothing_that_is_there(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(config, "many", "1/2", "2/2")
    monkeypatch.setattr(EntryScorer, "_launch", None)
    assert one_process(config, "many").summary["records"]["scored"] == 60


@pytest.mark.parametrize(
    "settings",
    [{"tokens": True}, {"ifd": True, "in_context": 1}, {"precision": "nf4"}],
    ids=["tokens", "ifd", "nf4"],
)
def test_whatever_is_measured_is_the_same(config: Make, tmp_path: Path, settings: Settings) -> None:
    one_process(config, "one", **settings)
    shards(config, "many", "2/2", "1/2", **settings)
    one_process(config, "many", **settings)
    files = (*FILES, "tokens.parquet") if settings.get("tokens") else FILES
    assert_same(tmp_path, "one", "many", files=files)


def test_a_resume_with_another_number_of_workers(config: Make, tmp_path: Path) -> None:
    one_process(config, "one")
    shards(config, "many", "1/4", "3/4")
    before = shards(config, "many", "2/3")
    assert 0 < before["done"] < before["parts"]
    after = shards(config, "many", "1/1")
    assert after["done"] == after["parts"] == before["parts"]
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")


def test_a_job_ended_too_early_computes_the_rest_itself(config: Make, tmp_path: Path) -> None:
    one_process(config, "one")
    shards(config, "many", "1/2")
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Let a process compute some batches, and then be told to stop."""
    whole = EntryScorer.facts
    done: list[int] = []

    def interrupted(self: EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        if len(done) == batches:
            raise Interrupted(15)
        done.append(len(entries))
        return whole(self, entries)

    monkeypatch.setattr(EntryScorer, "facts", interrupted)


def test_from_one_process_to_many_and_back(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_process(config, "one")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        with pytest.raises(Interrupted):
            one_process(config, "many")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Interrupted):
            shards(config, "many", "1/2")
    first = shards(config, "many", "2/2")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            one_process(config, "many")
    # What one process has done is in no part any more.
    second = shards(config, "many", "1/2")
    assert second["parts"] < first["parts"]
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")
    # And once more, when there is nothing left to do.
    assert shards(config, "many", "1/2")["parts"] == 0
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")


def test_parts_of_another_job_are_refused(config: Make, data: Path, tmp_path: Path) -> None:
    shards(config, "many", "1/2")
    for settings, named in (
        ({"precision": "bf16"}, 'precision = "fp32", this one has "bf16"'),
        ({"ifd": True}, "ifd = false, this one has true"),
    ):
        with pytest.raises(UsageError, match=named):
            shards(config, "many", "2/2", **settings)
    data.write_text(data.read_text() + "\n")
    with pytest.raises(UsageError, match="files ="):
        shards(config, "many", "2/2")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "2", "1/2/3", "-1/2", "a/b", ""])
def test_a_shard_that_is_none_is_refused(config: Make, shard: str) -> None:
    with pytest.raises(ValueError, match="expected I/N with 1 <= I <= N"):
        config("many", shard=shard)


def test_settings_that_exclude_each_other_are_refused(config: Make) -> None:
    with pytest.raises(ValueError, match="give either this or `shard`"):
        config("many", shard="1/2", launcher="local")
    with pytest.raises(ValueError, match="needs `launcher`"):
        config("many", workers=2)


def test_unusable_input_is_told_by_every_shard(config: Make, data: Path) -> None:
    data.write_text("broken\n")
    for shard in ("1/2", "2/2", "1/2"):
        with pytest.raises(InputError, match="not one record is usable"):
            shards(config, "many", shard)


def test_unusable_input_is_told_by_a_worker_that_waited_for_another_to_read_it(
    config: Make, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write_text("broken\n")
    read, codes = worker_job._read, []

    def slow(*args: Any) -> None:  # noqa: ANN401
        waits.wait(60)
        read(*args)

    def run() -> None:
        with pytest.raises(InputError) as caught:
            shards(config, "many", "1/1")
        codes.append(caught.value.code)

    waits = threading.Event()
    monkeypatch.setattr(worker_job, "_wait", lambda _: waits.set())
    monkeypatch.setattr(worker_job, "_read", slow)
    two = [threading.Thread(target=run) for _ in range(2)]
    for thread in two:
        thread.start()
    for thread in two:
        thread.join()
    assert codes == ["E_INPUT_UNUSABLE"] * 2


def test_who_takes_a_reader_for_dead_waits_for_what_it_reads(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_process(config, "one")
    wait = worker_job._wait
    holds, waits = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def slow(*args: Any) -> Iterator[Any]:  # noqa: ANN401
        with prepared(*args) as found:
            (beat,) = (tmp_path / "many").glob(f"{STATE_FOLDER}/{parts.FOLDER}/workers/*/beat")
            (beat.parent / STATE_FOLDER / "lock").write_text("process 1 on elsewhere")
            os.utime(beat, (0, 0))
            holds.set()
            waits.wait(60)
            yield found

    def waited(interrupts: Interrupts) -> None:
        waits.set()
        wait(interrupts)

    first = threading.Thread(target=shards, args=(config, "many", "1/2"))
    with monkeypatch.context() as patch:
        patch.setattr(worker_job, "prepared", slow)
        first.start()
        assert holds.wait(60)
    monkeypatch.setattr(worker_job, "_wait", waited)
    shards(config, "many", "2/2")
    first.join()
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")


def test_while_a_worker_is_at_it_the_job_is_not_ended(config: Make, tmp_path: Path) -> None:
    shards(config, "many", "1/2")
    folder = tmp_path / "many" / STATE_FOLDER / parts.FOLDER
    with Worker(folder, {}, SCHEMA) as worker:
        with pytest.raises(LockedError, match=f"process {worker.name.split('.')[-2]} on "):
            one_process(config, "many")
        # Others may come and do what nobody does.
        shards(config, "many", "2/2")
    one_process(config, "many")
    assert (tmp_path / "many" / "scores.parquet").exists()


def test_a_clock_that_is_fast_here_does_not_make_workers_elsewhere_dead(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(config, "many", "1/2")
    with Worker(tmp_path / "many" / STATE_FOLDER / parts.FOLDER, {}, SCHEMA) as worker:
        (worker.folder / STATE_FOLDER / "lock").write_text("process 1 on elsewhere")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 2 * claims.STALE_SECONDS)
        with pytest.raises(LockedError, match="process 1 on elsewhere"):
            one_process(config, "many")
        assert worker.folder.is_dir()


def fail_at(monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
    """Give no number for some entries."""
    facts = EntryScorer.facts

    def poisoned(self: EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        return [
            replace(one, logprobs=np.full_like(one.logprobs, np.nan)) if entry in failing else one
            for entry, one in zip(entries.tolist(), facts(self, entries), strict=True)
        ]

    monkeypatch.setattr(EntryScorer, "facts", poisoned)


def test_what_is_left_out_comes_in_the_same_order(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, {3, 11, 12, 28, 55, 56})
    outcome = one_process(config, "one")
    assert outcome.summary["records"]["quarantined_by_code"] == {
        "E_JSON_SYNTAX": 1,
        "E_NONFINITE": 6,
    }
    shards(config, "many", "3/3", "1/3", "2/3")
    one_process(config, "many")
    assert_same(tmp_path, "one", "many")
    lines = (tmp_path / "one" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [61, 4, 12, 13, 29, 56, 57]


def test_of_a_result_and_none_the_result_counts(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers did the same part, as one was taken for dead, and only one of them got through."""
    state = tmp_path / "many" / STATE_FOLDER / parts.FOLDER
    for failing in ({5, 30}, {6, 30}):
        with monkeypatch.context() as patch:
            fail_at(patch, failing)
            # The second one is to begin anew, as if it had not seen the first.
            patch.setattr("fam_engine.jobs.scoring.sharing.worker.inherit", lambda *_: None)
            shards(config, "many", "1/1")
        for mark in (state / "done").iterdir():
            mark.unlink()
    outcome = one_process(config, "many")
    assert outcome.summary["records"]["quarantined_by_code"] == {
        "E_JSON_SYNTAX": 1,
        "E_NONFINITE": 1,
    }
    assert outcome.summary["records"]["scored"] == 59


def test_an_heir_knows_what_its_forebear_had_done_and_died_of(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = EntryScorer.facts
    computed: list[int] = []

    def dying(self: EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        if 30 in entries:
            raise Interrupted(9)
        computed.extend(entries.tolist())
        return facts(self, entries)

    with monkeypatch.context() as patch:
        # As after a kill, the note of the batch in flight stays.
        patch.setattr(Journal, "clear_flight", lambda _: None)
        patch.setattr(EntryScorer, "facts", dying)
        num_deaths = 0
        while num_deaths < 20:
            try:
                shards(config, "many", "1/1")
                break
            except Interrupted:
                num_deaths += 1
    # Halves of a batch, and then it alone; and nothing was computed twice on the way.
    assert DEATHS_TO_BLAME <= num_deaths <= 4 + DEATHS_TO_BLAME
    assert len(computed) == len(set(computed)) == 59
    outcome = one_process(config, "many")
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_CRASH": 1, "E_JSON_SYNTAX": 1}
    assert outcome.summary["records"]["scored"] == 59


def test_a_record_that_killed_one_process_and_that_a_worker_has_done_keeps_its_result(
    config: Make, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(data, make_records(2)[:1])
    with monkeypatch.context() as patch:
        # As after a kill, the note of the batch in flight stays.
        patch.setattr(Journal, "clear_flight", lambda _: None)
        for _ in range(DEATHS_TO_BLAME):
            interrupt_after(patch, 0)  # in its first batch
            with pytest.raises(Interrupted):
                one_process(config, "many")
    shards(config, "many", "1/1")
    outcome = one_process(config, "many")
    assert (outcome.summary["records"]["scored"], outcome.num_quarantined) == (1, 0)


def lose_the_log(database: Path) -> None:
    """What the disk has of a journal whose write-ahead log was not written yet."""
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    database.with_name(f"{database.name}-wal").touch()


SPOILT = {
    "log lost": lose_the_log,
    "empty": lambda database: database.write_bytes(b""),
    "garbage": lambda database: database.write_bytes(bytes(range(1, 256)) * 300),
    "folder gone": lambda database: shutil.rmtree(database.parents[1]),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_the_results_of_a_journal_that_a_power_cut_has_spoilt_are_computed_again(
    config: Make, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    one_process(config, "one")
    state = tmp_path / "many" / STATE_FOLDER / parts.FOLDER
    shards(config, "many", "1/2")
    (database,) = state.glob(f"workers/*/{STATE_FOLDER}/journal.sqlite")
    spoil(database)
    # One mark is lost too: a worker takes the part up. The end finds the others and no results.
    min((state / "done").iterdir()).unlink()
    shards(config, "many", "1/1")
    told = Told()
    run_score(config("many"), told)
    assert [note for note in told.notes if "computed again" in note]
    assert_same(tmp_path, "one", "many")


def test_a_disk_that_is_full_is_not_taken_for_a_spoilt_journal(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(config, "many", "1/1")

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(gathering, "_take_rows", full)
        with pytest.raises(StorageError, match="disk is full"):
            one_process(config, "many")
    monkeypatch.setattr(EntryScorer, "_launch", None)  # nothing is lost
    assert one_process(config, "many").summary["records"]["scored"] == 60


def test_status_tells_of_parts_and_workers(config: Make, tmp_path: Path) -> None:
    shards(config, "many", "1/3")
    status = read_status(tmp_path / "many")
    assert status.parts is not None
    assert (status.state, status.workers) == ("stopped", [])
    assert (status.progress.done, status.progress.unit) == (status.parts.done, "parts")
    assert status.parts.waiting == status.progress.total - status.parts.done
    with Worker(tmp_path / "many" / STATE_FOLDER / parts.FOLDER, {}, SCHEMA) as worker:
        assert worker.claim(["000001"]) is not None
        status = read_status(tmp_path / "many")
        assert status.parts is not None
        assert (status.state, status.parts.claimed, len(status.workers)) == ("running", 1, 1)
        assert "wait" in status.advice
    stopped = read_status(tmp_path / "many")
    assert stopped.parts is not None
    assert (stopped.state, stopped.parts.claimed, stopped.parts.stale) == ("stopped", 0, 1)
    shards(config, "many", "1/1")
    assert "without --shard" in read_status(tmp_path / "many").advice
    one_process(config, "many")
    ended = read_status(tmp_path / "many")
    assert (ended.state, ended.parts) == ("finished", None)


def test_status_on_another_machine_says_the_same(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "many"

    def seen_from_elsewhere() -> JobStatus:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "login-node")
            return read_status(out)

    shards(config, "many", "1/1")
    lock = out / STATE_FOLDER / "lock"
    lock.write_text("process 1 on elsewhere")
    with Worker(out / STATE_FOLDER / parts.FOLDER, {}, SCHEMA) as worker:
        status = seen_from_elsewhere()
        assert (status.state, status.workers) == ("running", [status.holder])
        assert f".{status.workers[0].process}." in worker.name
    assert seen_from_elsewhere().state == "unknown"
    lock.write_text("")
    stopped = seen_from_elsewhere()
    assert (stopped.state, "without --shard" in stopped.advice) == ("stopped", True)
    one_process(config, "many")
    assert seen_from_elsewhere().state == "finished"
    lock.write_text("process 1 on elsewhere")  # of an earlier release, which left its name
    assert seen_from_elsewhere().state == "finished"


def test_status_may_look_while_parts_are_gathered(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Interrupted):
            shards(config, "many", "1/1")
    count = claims._claim_numbers

    def gathered_meanwhile(folder: Path) -> dict[str, int]:
        numbers = count(folder)
        shutil.rmtree(folder)
        return numbers

    monkeypatch.setattr(claims, "_claim_numbers", gathered_meanwhile)
    status = read_status(tmp_path / "many")
    assert (status.state, status.parts, status.progress.unit) == ("stopped", None, "records")


def test_a_forecast_is_shared_by_the_workers(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "predict_seconds", lambda *_: 24.0)
    alone = forecast_score(config("none"), Nobody())
    shared = forecast_score(config("none", shard="1/8"), Nobody())
    assert (alone.num_workers, shared.num_workers) == (1, 8)
    assert alone.num_parts == shared.num_parts > 8
    assert (alone.seconds, shared.seconds) == (24.0, 3.0)

"""Records that kill the process: each is found by the note of the batch in flight, left out, and the rest computed.

The model is made to die, by a signal or without a word, when it meets a certain token. No supervisor watches: the same
command is started again, as a user or a scheduler would.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fam_engine.jobs.journal import DEATHS_TO_BLAME
from tests.faults.commands import Command, import_all, run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

NUM_RECORDS = 40
POISON = "Z"

# How it dies, what that looks like from outside, and the numbers of the records it dies of.
DEATHS: Mapping[str, tuple[Callable[[], object], int, tuple[int, ...]]] = {
    "abort": (os.abort, -signal.SIGABRT, (5, 23)),
    "segmentation fault": (
        lambda: os.kill(os.getpid(), signal.SIGSEGV),
        -signal.SIGSEGV,
        (0,),
    ),
    "exit": (lambda: os._exit(77), 77, (39,)),
}


def write_records(file: Path, poisoned: tuple[int, ...]) -> None:
    rows = [
        {"prompt": f"question {number}\n", "response": f"answer {number}"}
        for number in range(NUM_RECORDS)
    ]
    for number in poisoned:
        rows[number]["prompt"] = f"question {number} {POISON}\n"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def deadly(model: Path, die: Callable[[], object]) -> Callable[[], None]:
    """Make what lets the model die of a token."""
    vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]

    def before() -> None:
        from fam_engine.model.decoder import Decoder

        forward = Decoder.hidden_rows

        def hidden_rows(self: Decoder, batch: Any, **options: Any) -> Any:  # noqa: ANN401
            if (batch.input_ids == vocab[POISON]).any():
                die()
            return forward(self, batch, **options)

        Decoder.hidden_rows = hidden_rows  # type: ignore[method-assign]

    return before


def until_done(command: Command, death: int, at_most: int) -> int:
    """Start a command again and again until it no longer dies; give how often it did."""
    for deaths in range(at_most + 1):
        result = run(command)
        if result.code != death:
            assert result.code == 3, result
            return deaths
    raise AssertionError(f"still dying after {at_most} deaths")


@pytest.mark.parametrize("way", DEATHS)
def test_records_that_kill_the_process_are_left_out_and_the_rest_scored(
    tiny_model: Path, tmp_path: Path, way: str
) -> None:
    import_all()
    die, death, poisoned = DEATHS[way]
    data = tmp_path / "data.jsonl"
    write_records(data, poisoned)
    folder = tmp_path / "run"
    folder.mkdir()
    flags = ("score", "--model", tiny_model, "--data", data, "--quiet")
    whole = run(Command((*flags, "--out", tmp_path / "whole"), folder))
    assert whole.code == 0, whole

    out = tmp_path / "out"
    command = Command((*flags, "--out", out), folder, deadly(tiny_model, die))
    # The batch, its half, ... and the record alone so many times; each once.
    most = len(poisoned) * (math.ceil(math.log2(NUM_RECORDS)) + DEATHS_TO_BLAME)
    deaths = until_done(command, death, most)
    assert deaths >= len(poisoned) * DEATHS_TO_BLAME

    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {(row["line"], row["code"]) for row in quarantine} == {
        (number + 1, "E_CRASH") for number in poisoned
    }
    assert all("the process died" in row["reason"] for row in quarantine)
    expected = pq.read_table(tmp_path / "whole" / "scores.parquet").to_pylist()
    expected = [row for row in expected if row["line"] - 1 not in poisoned]
    assert pq.read_table(out / "scores.parquet").to_pylist() == expected
    # Nothing is left to blame: the same command once more is done at once.
    assert run(command).code == 3


def test_questions_that_kill_the_process_are_left_out_and_the_rest_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    import_all()
    data, folder = tmp_path / "data.jsonl", tmp_path / "run"
    folder.mkdir()
    write_records(data, (7,))
    flags = ("generate", "--model", tiny_model, "--data", data, "--quiet", "--max-new-tokens", 4)
    whole = run(Command((*flags, "--out", tmp_path / "whole"), folder))
    out = tmp_path / "out"
    command = Command((*flags, "--out", out), folder, deadly(tiny_model, os.abort))
    deaths = until_done(
        command, -signal.SIGABRT, math.ceil(math.log2(NUM_RECORDS)) + DEATHS_TO_BLAME
    )
    assert deaths >= DEATHS_TO_BLAME

    def lines(folder: Path, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    (bad,) = (row for row in lines(out, "quarantine.jsonl") if row["code"] == "E_CRASH")
    assert bad["line"] == 8
    expected = lines(tmp_path / "whole", "generated.jsonl")
    assert whole.code in (0, 3)
    assert len(expected) > NUM_RECORDS // 2
    assert lines(out, "generated.jsonl") == [
        row for row in expected if f" {POISON}" not in row["prompt"]
    ]

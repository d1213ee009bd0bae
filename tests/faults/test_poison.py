"""Records that kill the process: each is found by the note of the batch in flight, left out, and the rest computed.

The model is made to die, by a signal or without a word, when it meets a certain token. No supervisor watches: the same
command is started again, as a user or a scheduler would.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fam_engine.jobs.journal import DEATHS_TO_BLAME
from tests.faults.forking import Prepare, run

pytestmark = pytest.mark.faults

NUM_RECORDS = 40
POISON = "Z"

# How it dies: a signal or an exit code; and the numbers of the records it dies of.
DEATHS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "abort": (-signal.SIGABRT, (5, 23)),
    "segmentation fault": (-signal.SIGSEGV, (0,)),
    "exit": (77, (39,)),
}


def write_records(file: Path, poisoned: tuple[int, ...]) -> None:
    rows = [
        {"prompt": f"question {number}\n", "response": f"answer {number}"}
        for number in range(NUM_RECORDS)
    ]
    for number in poisoned:
        rows[number]["prompt"] = f"question {number} {POISON}\n"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def deadly(model: Path, death: int) -> Prepare:
    """Give what lets the model die of a token."""
    vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return partial(be_deadly, vocab[POISON], death)


def be_deadly(token: int, death: int) -> None:
    from fam_engine.model.decoder import Decoder

    forward = Decoder.hidden_rows

    def hidden_rows(self: Decoder, batch: Any, **options: Any) -> Any:  # noqa: ANN401
        if (batch.input_ids == token).any():
            die(death)
        return forward(self, batch, **options)

    Decoder.hidden_rows = hidden_rows  # type: ignore[method-assign]


def die(death: int) -> None:
    """End as `Ended.code` is to say: by a signal, or without a word."""
    if death < 0:
        os.kill(os.getpid(), -death)
    os._exit(death)


def until_done(line: Sequence[str], model: Path, death: int, at_most: int) -> int:
    """Start a command again and again until it no longer dies; give how often it did."""
    folder = Path(line[-1]).with_name("run")
    for deaths in range(at_most + 1):
        ended = run(line, folder, deadly(model, death))
        if ended.code != death:
            assert ended.code == 3, ended
            return deaths
    raise AssertionError(f"still dying after {at_most} deaths")


@pytest.mark.parametrize("way", DEATHS)
def test_records_that_kill_the_process_are_left_out_and_the_rest_scored(
    tiny_model: Path, tmp_path: Path, way: str
) -> None:
    death, poisoned = DEATHS[way]
    data = tmp_path / "data.jsonl"
    write_records(data, poisoned)
    flags = ["score", "--model", str(tiny_model), "--data", str(data), "--quiet", "--out"]
    whole = run([*flags, str(tmp_path / "whole")], tmp_path / "run")
    assert whole.code == 0, whole

    out = tmp_path / "out"
    line = [*flags, str(out)]
    # The batch, its half, ... and the record alone so many times; each once.
    most = len(poisoned) * (math.ceil(math.log2(NUM_RECORDS)) + DEATHS_TO_BLAME)
    deaths = until_done(line, tiny_model, death, most)
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
    assert run(line, tmp_path / "run").code == 3


def test_questions_that_kill_the_process_are_left_out_and_the_rest_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    write_records(data, (7,))
    flags = ["generate", "--model", str(tiny_model), "--data", str(data), "--quiet"]
    flags += ["--max-new-tokens", "4", "--out"]
    whole = run([*flags, str(tmp_path / "whole")], tmp_path / "run")
    most = math.ceil(math.log2(NUM_RECORDS)) + DEATHS_TO_BLAME
    deaths = until_done([*flags, str(out)], tiny_model, -signal.SIGABRT, most)
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

"""Records that kill the process: each is found by the note of the batch in flight, left out, and the rest computed.

The model is made to die, by a signal or without a word, when it meets a certain token. No supervisor watches: the same
command is started again, as a user or a scheduler would.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fam_engine.jobs.journal import DEATHS_TO_BLAME
from tests.faults.forking import Ended, Prepare, run
from tests.faults.small_jobs import contents

pytestmark = pytest.mark.faults

NUM_RECORDS = 40
POISON = "Z"
# How a step of training computes a batch, and how validation does: a record may kill only one of them.
STEP, VALIDATION = "forward_backward", "token_nll"

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


def deadly(model: Path, death: int, way_of_training: str) -> Prepare:
    """Give what lets the model die of a token."""
    vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return partial(be_deadly, vocab[POISON], death, way_of_training)


def be_deadly(token: int, death: int, way_of_training: str) -> None:
    from fam_engine.model.decoder import Decoder
    from fam_engine.model.trainable import TrainableModel

    def dies_of_it(compute: Callable[..., Any]) -> Any:  # noqa: ANN401 - a method
        def computes(self: object, batch: Any, *others: Any, **options: Any) -> Any:  # noqa: ANN401
            if (batch.input_ids == token).any():
                die(death)
            return compute(self, batch, *others, **options)

        return computes

    Decoder.hidden_rows = dies_of_it(Decoder.hidden_rows)  # type: ignore[method-assign]
    compute = getattr(TrainableModel, way_of_training)
    setattr(TrainableModel, way_of_training, dies_of_it(compute))


def die(death: int) -> None:
    """End as `Ended.code` is to say: by a signal, or without a word."""
    if death < 0:
        os.kill(os.getpid(), -death)
    os._exit(death)


def until_alive(
    line: Sequence[str], model: Path, death: int, at_most: int, way_of_training: str = STEP
) -> tuple[int, Ended]:
    """Start a command again and again until it no longer dies; give how often it did, and its end."""
    folder = Path(line[-1]).with_name("run")
    for deaths in range(at_most + 1):
        ended = run(line, folder, deadly(model, death, way_of_training))
        if ended.code != death:
            return deaths, ended
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
    deaths, ended = until_alive(line, tiny_model, death, most)
    assert ended.code == 3, ended
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
    deaths, ended = until_alive([*flags, str(out)], tiny_model, -signal.SIGABRT, most)
    assert ended.code == 3, ended
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


@pytest.mark.parametrize("way", DEATHS)
@pytest.mark.parametrize("where", ["data", "validation"])
def test_a_record_that_kills_training_is_named(
    tiny_model: Path, tmp_path: Path, way: str, where: str
) -> None:
    """And nothing of the run is lost: without what kills it, it ends as one that never died."""
    death, (poisoned, *_) = DEATHS[way]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "validation")}
    for name, file in files.items():
        write_records(file, (poisoned,) if name == where else ())
    flags = ["train", "--model", str(tiny_model), "--quiet", "--steps", "8", "--batch-size", "8"]
    flags += [word for name, file in files.items() for word in (f"--{name}", str(file))]
    flags += ["--save-every", "3", "--validate-every", "2", "--out"]
    whole = run([*flags, str(tmp_path / "whole")], tmp_path / "run")
    assert whole.code == 0, whole

    line = [*flags, str(tmp_path / "out")]
    most = math.ceil(math.log2(NUM_RECORDS)) + DEATHS_TO_BLAME
    way_of_training = STEP if where == "data" else VALIDATION
    deaths, ended = until_alive(line, tiny_model, death, most, way_of_training)
    assert deaths >= DEATHS_TO_BLAME
    assert ended.code == 4
    assert ended.errors.startswith(
        f"error[E_CRASH] {files[where]}:{poisoned + 1}: the process died"
    )
    assert len(ended.errors.splitlines()) == 1
    assert run(line, tmp_path / "run").code == 0
    expected, found = (contents(tmp_path / name) for name in ("whole", "out"))
    name = "adapter/adapter_model.safetensors"
    assert found[name] == expected[name]
    assert found["log.jsonl"] == expected["log.jsonl"]

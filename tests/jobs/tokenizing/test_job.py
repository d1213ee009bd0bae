from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fam_engine.config import TokenizeConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.embedded import MODEL
from fam_engine.errors import InputError, ModelRefusedError
from fam_engine.jobs.tokenizing import checking, job
from fam_engine.jobs.tokenizing.counting import histogram
from fam_engine.jobs.tokenizing.job import run_tokenize
from tests.jobs.training.small_job import Notes, make_records, read_lines, write_records


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_records(tmp_path / "data.jsonl", make_records(20))


def tokenize(model: Path | str, *data: Path, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    names = tuple(map(str, data))
    return run_tokenize(TokenizeConfig(model=str(model), data=names, **settings), Notes())


def test_counts_are_those_of_the_texts(tiny_model: Path, data: Path) -> None:
    # A token is a byte here, a BOS comes before a prompt and an EOS after a response.
    records = make_records(20)
    prompts = [len(record["prompt"]) + 1 for record in records]
    responses = [len(record["response"]) for record in records]
    summary = tokenize(tiny_model, data)
    assert summary["records"] == {
        "read": 20,
        "tokenized": 20,
        "quarantined": 0,
        "quarantined_by_code": {},
    }
    assert summary["tokens"] == {
        "prompt": sum(prompts),
        "response": sum(responses),
        "end_of_turn": 20,
    }
    assert summary["response_bytes"] == sum(responses)
    assert summary["response_tokens_per_byte"] == 1.0
    read = np.array(prompts) + np.array(responses)  # the end of turn is predicted, not read
    lengths = summary["lengths"]["record"]
    assert (lengths["min"], lengths["max"]) == (read.min(), read.max())
    assert lengths["p50"] == np.median(read)
    assert sum(summary["histogram"]["count"]) == 20
    assert summary["max_length"] == 256
    assert summary["tokenizer"]["engine"] == "native:bytes"
    assert summary["forms"][0]["response"] == records[0]["response"]


def test_packs_hold_what_they_say(tiny_model: Path, data: Path) -> None:
    records = make_records(20)
    read = [len(record["prompt"]) + 1 + len(record["response"]) for record in records]
    long = sum(length > 64 for length in read)
    packs = tokenize(tiny_model, data, capacity=64)["packs"]
    assert packs["too_long"] == long
    fitting = sum(length for length in read if length <= 64)
    for mode in ("global", "windowed", "in-order"):
        way = packs["ways"][mode]
        assert way["tokens"] == fitting
        assert way["fill"] == fitting / (64 * way["packs"])
    ways = tokenize(tiny_model, data, capacity=4096)["packs"]["ways"]
    # Every prompt has two answers, and is there once.
    shared = ways["global"]["tokens"] - sum(len(record["prompt"]) + 1 for record in records[::2])
    assert ways["shared-prompts"]["tokens"] == shared


def test_bad_and_long_records_are_set_aside_and_flags_counted(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "one\n", "response": "two"},
        {"prompt": "x" * 60, "response": "three"},
        {"prompt": "one\n", "response": ""},
        {"prompt": "one </s>\n", "response": "four"},
    ]
    data = write_records(tmp_path / "data.jsonl", rows)
    with data.open("a") as file:
        file.write("not json\n")
    out = tmp_path / "out"
    summary = tokenize(tiny_model, data, max_length=40, out=out)
    codes = {"E_EMPTY_RESPONSE": 1, "E_JSON_SYNTAX": 1, "E_TOO_LONG": 1}
    assert summary["records"]["quarantined_by_code"] == codes
    assert summary["records"]["tokenized"] + 3 == summary["records"]["read"] == 5
    assert summary["flags"] == {"special_in_text": 1}
    assert [row["line"] for row in read_lines(out / "quarantine.jsonl")] == [2, 3, 5]
    assert json.loads((out / "summary.json").read_text()) == summary
    cut = tokenize(tiny_model, data, max_length=40, on_long="cut-prompt")
    assert cut["flags"] == {"prompt_cut": 1, "special_in_text": 1}
    assert cut["lengths"]["record"]["max"] == 40


@pytest.mark.parametrize("ids", ["jsonl", "parquet"])
def test_ids_are_those_a_run_would_use(
    tiny_model: Path, data: Path, tmp_path: Path, ids: str
) -> None:
    out = tmp_path / "out"
    tokenize(tiny_model, data, out=out, ids=ids)
    file = out / f"ids.{ids}"
    rows = read_lines(file) if ids == "jsonl" else pq.read_table(file).to_pylist()
    records = make_records(20)
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    tokenizer = TextEncoder(tiny_model).tokenizer
    for row, record in zip(rows, records, strict=True):
        assert row["context_ids"][0] == 0  # BOS
        assert tokenizer.decode(row["context_ids"][1:]) == record["prompt"]
        assert tokenizer.decode(row["response_ids"]) == record["response"]
        assert row["end_of_turn_ids"] == [1]
    assert [row["line"] for row in rows] == list(range(1, 21))


def test_joint_ids_are_those_of_the_whole_text(tmp_path: Path) -> None:
    data = write_records(tmp_path / "d.jsonl", [{"prompt": "Janet ate th", "response": "e eggs"}])
    rows = {}
    for boundary in ("separate", "joint"):
        out = tmp_path / boundary
        summary = tokenize("embedded", data, out=out, ids="jsonl", boundary=boundary)
        assert summary["settings"]["boundary"] == boundary
        assert summary["flags"] == {"boundary_merged": 1}
        (rows[boundary],) = read_lines(out / "ids.jsonl")
    joined = rows["joint"]["context_ids"] + rows["joint"]["response_ids"]
    whole, _ = TextEncoder(MODEL).tokenizer.encode_batch(["Janet ate the eggs"])
    assert joined[-len(whole) :] == whole.tolist()
    assert rows["joint"]["response_ids"] != rows["separate"]["response_ids"]


def test_a_folder_with_a_tokenizer_alone_is_enough(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    summary = tokenize(folder, data)
    assert summary["records"]["tokenized"] == 20
    assert summary["max_length"] is None
    assert summary["tokens"]["end_of_turn"] == 0  # no file names one


def test_verify_compares_the_users_own_texts(tiny_model: Path, data: Path) -> None:
    check = tokenize(tiny_model, data, verify=True)["verify"]
    # context, response and both, each in four readings
    assert check == {
        "num_compared": 20 * 3 * 4,
        "num_mismatched": 0,
        "mismatches": [],
        "compared_with_itself": False,
    }
    assert tokenize(tiny_model, data)["verify"] is None


def test_verify_names_the_record_of_a_difference(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "tokenizer.json"
    file.write_bytes((tiny_model / "tokenizer.json").read_bytes())
    definition = json.loads(file.read_text())
    vocab = definition["model"]["vocab"]
    vocab["q"], vocab["z"] = vocab["z"], vocab["q"]

    def spoilt(encoder: TextEncoder) -> checking.TextCheck:
        # The reference is read from the file once the tokenizer in use is loaded.
        file.write_text(json.dumps(definition))
        return checking.TextCheck(encoder)

    monkeypatch.setattr(job, "TextCheck", spoilt)
    monkeypatch.setattr(checking, "_BYTES_A_CALL", 10)  # several calls
    rows = [{"prompt": "a\n", "response": "b"}, {"prompt": "ask\n", "response": "a quiz"}]
    data = write_records(tmp_path / "data.jsonl", [rows[0]] * 5 + [rows[1]] + [rows[0]] * 5)
    check = tokenize(folder, data, verify=True)["verify"]
    assert check["num_compared"] == 11 * 3 * 4
    assert check["num_mismatched"] == 2 * 4
    found = check["mismatches"][0]
    assert (found["file"], found["line"], found["text"]) == (str(data), 6, "z")
    assert (found["ids"], found["expected_ids"]) == ([vocab["q"]], [vocab["z"]])


def test_bars_are_not_ruled_by_one_long_record() -> None:
    lengths = np.array([*range(100), 10**6], np.int64)
    bars = histogram(lengths)
    assert bars["start"][1] < 10
    assert bars["count"][-1] <= 8
    assert sum(bars["count"]) == 101
    assert histogram(np.array([5], np.int64)) == {
        "start": [0, 1, 2, 3, 4, 5],
        "count": [0] * 5 + [1],
    }


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"data": ("nowhere.jsonl",)}, InputError),
        ({"model": "nowhere"}, ModelRefusedError),
        ({"model": "no/such/model"}, ModelRefusedError),
    ],
)
def test_what_cannot_be_used_is_refused(
    tiny_model: Path, data: Path, change: dict[str, Any], kind: type[Exception]
) -> None:
    config = TokenizeConfig(**{"model": str(tiny_model), "data": (str(data),), **change})
    with pytest.raises(kind):
        run_tokenize(config, Notes())


def test_a_folder_that_transformers_reads_otherwise_is_noted(shared: Path, data: Path) -> None:
    for name, expected in (("phi3_mini", 1), ("qwen3", 0)):
        told = Notes()
        folder = str(shared / "tokenizers" / name)
        run_tokenize(TokenizeConfig(model=folder, data=(str(data),)), told)
        assert sum("transformers 5.24 leaves out" in note for note in told.notes) == expected


def test_it_loads_no_torch(tiny_model: Path, data: Path) -> None:
    program = (
        "import sys; from fam_engine.cli.main import main; sys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)"
    )
    arguments = ["tokenize", str(data), "--model", str(tiny_model), "--quiet"]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines()[-1] == "0 False", run.stderr

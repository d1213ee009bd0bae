"""Records in other trainers' formats, held against what their readers do with them.

TRL's reader itself runs in tests/integrations/test_trl.py. axolotl and LLaMA-Factory pin torch and transformers to
versions of their own, so what their readers look at (sources named in `formats`) is written down here once more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fam_engine.config import ExportConfig
from fam_engine.data.records import Record, detect_form, read_record
from fam_engine.data.turns import Message
from fam_engine.errors import InputError, RecordError, StorageError, UsageError
from fam_engine.jobs.exporting.formats import FORMATS
from fam_engine.jobs.exporting.job import run_export
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.report.progress import JobProgress

DIALOGUE = ("system", "be brief"), ("user", "one"), ("assistant", "eins"), ("user", "two")


def record(*turns: tuple[str, str]) -> Record:
    context = tuple(Message(*turn) for turn in turns)
    return Record("data.jsonl", 1, context, "", "zwei", "data.jsonl:1", "data")


def export(data: Path, out: Path, **settings: Any) -> JobOutcome:  # noqa: ANN401
    config = ExportConfig(data=(str(data),), out=out, **{"format": "trl", **settings})
    with JobProgress(quiet=True) as progress:
        return run_export(config, progress)


def turns_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = row.get("messages") or [*row["prompt"], *row["completion"]]
    return turns


@pytest.mark.parametrize("name", FORMATS)
def test_every_turn_is_there_and_in_order(name: str) -> None:
    row = FORMATS[name].row(record(*DIALOGUE))
    found = [(turn["role"], turn["content"]) for turn in turns_of(row)]
    assert found == [*DIALOGUE, ("assistant", "zwei")]


def test_trl_trains_on_the_completion_which_is_the_answer_alone() -> None:
    row = FORMATS["trl"].row(record(*DIALOGUE))
    assert set(row) == {"prompt", "completion"}
    assert row["completion"] == [{"role": "assistant", "content": "zwei"}]


def test_axolotl_trains_on_the_answer_alone_by_the_field_its_settings_name() -> None:
    (dataset,) = yaml.safe_load(FORMATS["axolotl"].settings(Path("a b: c.jsonl")))["datasets"]
    assert dataset["path"] == "a b: c.jsonl"
    assert (dataset["type"], dataset["ds_type"]) == ("chat_template", "json")
    row = FORMATS["axolotl"].row(record(*DIALOGUE))
    turns = row[dataset["field_messages"]]
    trained = [turn["content"] for turn in turns if turn[dataset["message_field_training"]] is True]
    assert trained == ["zwei"]
    assert all(type(turn[dataset["message_field_training"]]) is bool for turn in turns)


def llama_factory_reads(row: dict[str, Any], entry: dict[str, Any]) -> list[tuple[str, str]] | None:
    """Do as its ShareGPT converter does; None where it leaves the example out."""
    tags = entry["tags"]
    turns = list(row[entry["columns"]["messages"]])
    if turns[0][tags["role_tag"]] == tags["system_tag"]:
        turns = turns[1:]
    accepted = (tags["user_tag"], tags["observation_tag"]), (tags["assistant_tag"],)
    for index, turn in enumerate(turns):
        if turn[tags["role_tag"]] not in accepted[index % 2]:
            return None
    read = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in turns]
    return None if len(turns) % 2 else read


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "one")],
        DIALOGUE,
        [("developer", "be brief"), ("user", "one")],
        [("user", "one"), ("assistant", "call"), ("tool", "1")],
    ],
)
def test_llama_factory_keeps_what_we_write(turns: list[tuple[str, str]]) -> None:
    export_format = FORMATS["llama-factory"]
    info = json.loads(export_format.settings(Path("folder/mine.jsonl")))
    assert info["mine"]["file_name"] == "mine.jsonl"
    assert info["mine"]["formatting"] == "sharegpt"
    read = llama_factory_reads(export_format.row(record(*turns)), info["mine"])
    expected = [turn for turn in turns if turn[0] not in ("system", "developer")]
    assert read == [*expected, ("assistant", "zwei")]


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "one"), ("user", "two")],
        [("assistant", "hello"), ("user", "one")],
        [("user", "one"), ("system", "be brief"), ("user", "two")],
    ],
)
def test_what_llama_factory_would_leave_out_is_told(turns: list[tuple[str, str]]) -> None:
    with pytest.raises(RecordError, match="a turn of role"):
        FORMATS["llama-factory"].row(record(*turns))
    assert FORMATS["trl"].row(record(*turns))  # others take it


@pytest.mark.parametrize("name", FORMATS)
def test_only_what_the_text_alone_says_is_written(name: str) -> None:
    def row(content: object, **more: object) -> dict[str, Any]:
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
        found = {"messages": turns, **more}
        read = read_record(found, detect_form(found), file="a", line=1, stem="a")
        return FORMATS[name].row(read)

    parts = [{"type": "text", "text": text} for text in ("Is 7 ", "prime?")]
    with pytest.raises(RecordError) as caught:
        row(parts)
    assert caught.value.code == "E_EXPORT_PARTS"
    whole = row("Is 7 prime?")
    assert whole == row([{"type": "text", "text": "Is 7 prime?"}]) == row("Is 7 prime?", tools=[])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turns", [[], [("system", "be brief")], [("assistant", "eins")]])
def test_an_answer_to_nobody_is_left_out(name: str, turns: list[tuple[str, str]]) -> None:
    with pytest.raises(RecordError) as caught:
        FORMATS[name].row(record(*turns))
    assert caught.value.code == "E_EXPORT_TURNS"


def test_bad_records_are_named_and_stop_no_other(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    good = '{"prompt": "one", "response": "caf\\u00e9"}\n'
    data.write_text(good + "not json\n" + '{"prompt": "one", "response": ""}\n' * 6 + good)
    outcome = export(data, tmp_path / "new" / "out.jsonl")
    assert outcome.num_quarantined == 7
    records = outcome.summary["records"]
    assert records["left_out_by_code"] == {"E_JSON_SYNTAX": 1, "E_EMPTY_RESPONSE": 6}
    assert [row["line"] for row in outcome.summary["first_left_out"]] == [2, 3, 4, 5, 6]
    lines = (tmp_path / "new" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == records["exported"] == 2
    assert json.loads(lines[0])["completion"][0]["content"] == "caf\u00e9"


def test_nothing_to_export_leaves_what_was_there(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"messages": [{"role": "assistant", "content": "hello"}]}\n')
    out.write_text("mine")
    with pytest.raises(InputError, match="not one record can be exported") as caught:
        export(data, out)
    assert caught.value.where == f"{data}:1"
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]


def test_the_data_is_not_overwritten(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "one", "response": "two"}\n')
    (tmp_path / "link.jsonl").symlink_to(data)
    for out in (data, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is the data itself"):
            export(data, out)


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "one", "response": "two"}\n')
    with pytest.raises(StorageError, match="cannot be written"):
        export(data, data / "out.jsonl")

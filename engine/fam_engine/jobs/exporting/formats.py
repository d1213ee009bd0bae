"""How a record looks to other trainers, and what they must be told to train on its answer alone.

In: a `Record`. Out: a row of the tool's format, or a `RecordError` where the tool would fail on it or, worse, leave it
out or train on another turn without a word; and the lines its user puts into the tool's own settings. All formats hold
turns, so the tool applies its chat template as `train` does; plain text, which it would not, was rejected.

Contracts read from TRL 1.16 (`data_utils.py`, prompt and completion as turns), axolotl 0.19
(`prompt_strategies/chat_template.py`) and LLaMA-Factory 0.9.5 (`data/converter.py`, `data/parser.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fam_engine.data.records import Record
from fam_engine.data.turns import Message
from fam_engine.errors import RecordError


@dataclass(frozen=True)
class ExportFormat:
    """A tool's format.

    Attributes:
        row: Record -> row.
        settings: Name of the file -> what goes into the tool's own settings.
    """

    row: Callable[[Record], dict[str, Any]]
    settings: Callable[[Path], str]


def _check_turns(record: Record) -> None:
    """Refuse an answer that answers nobody: every tool's template opens the assistant's turn itself.

    And calls of tools and reasoning, which each of them has under other names, what one record alone tells the
    template, which two of them do not read, and several parts, which each template joins in its own way.
    """
    told, turns = record.told, (*record.context, record.answer_turn())
    if told.tools or told.kwargs or any(turn.is_written for turn in turns):
        found = "tools, calls, reasoning or chat_template_kwargs"
        raise RecordError("E_EXPORT_TOOLS", f"has {found}, expected texts only")
    if any(turn.has_parts and len(turn.for_template()["content"]) > 1 for turn in turns):
        raise RecordError("E_EXPORT_PARTS", "has a turn of several parts, expected one text each")
    last = record.context[-1].role if record.context else None
    if last not in ("user", "tool"):
        found = f"a turn of role `{last}`" if last else "no turn"
        raise RecordError(
            "E_EXPORT_TURNS", f"{found} comes before the answer, expected one of user or tool"
        )


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _trl_row(record: Record) -> dict[str, Any]:
    _check_turns(record)
    answer = Message("assistant", record.response)
    return {"prompt": [_turn(turn) for turn in record.context], "completion": [_turn(answer)]}


def _trl_settings(path: Path) -> str:
    return (
        "from datasets import load_dataset\n"
        f'dataset = load_dataset("json", data_files={json.dumps(str(path))}, split="train")\n'
        "# for SFTTrainer, which trains on the completions of such a dataset"
    )


def _axolotl_row(record: Record) -> dict[str, Any]:
    """Mark the answer as the one turn to train on; by default axolotl takes every assistant turn."""
    _check_turns(record)
    turns = [{**_turn(turn), "train": False} for turn in record.context]
    return {"messages": [*turns, {"role": "assistant", "content": record.response, "train": True}]}


def _axolotl_settings(path: Path) -> str:
    dataset = {
        "path": str(path),
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
    }
    return yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True).rstrip()


def _llama_factory_row(record: Record) -> dict[str, Any]:
    """Check what LLaMA-Factory only warns of before it leaves the example out: turns that alternate."""
    _check_turns(record)
    turns = [_turn(turn) for turn in record.context]
    if turns[0]["role"] in ("system", "developer"):
        turns[0]["role"] = "system"
    for index, turn in enumerate(turns[turns[0]["role"] == "system" :]):
        expected = ("assistant",) if index % 2 else ("user", "tool")
        if turn["role"] not in expected:
            raise RecordError(
                "E_EXPORT_TURNS",
                f"a turn of role `{turn['role']}` where LLaMA-Factory takes only {expected[0]}",
            )
    return {"messages": [*turns, _turn(Message("assistant", record.response))]}


def _llama_factory_settings(path: Path) -> str:
    entry = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "system_tag": "system",
        },
    }
    return json.dumps({path.stem: entry}, indent=2, ensure_ascii=False)


FORMATS = {
    "trl": ExportFormat(_trl_row, _trl_settings),
    "axolotl": ExportFormat(_axolotl_row, _axolotl_settings),
    "llama-factory": ExportFormat(_llama_factory_row, _llama_factory_settings),
}

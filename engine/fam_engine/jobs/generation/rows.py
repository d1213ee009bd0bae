"""Rows as questions, and questions with a new answer as rows.

In: a row of a user's file, with an answer or without. Out: the same row with a stand-in where the answer goes, so that
it reads as a record of its form by the one reader there is; later the same row with the new answer in that place.
Staying in the row's own form keeps its prompt what it was, to the last line break.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fam_engine.data.records import TOLD, found_columns
from fam_engine.errors import RecordError

# Kept beside the prompt, if there.
_LABELS = ("id", "group", "answer", "task", "choices", "tests", "kind", *TOLD)
# What a row asks with, in the order it is looked for -> where its answer goes.
RESPONSE_COLUMNS = {
    "messages": "response",
    "conversations": "response",
    "prompt": "response",
    "question": "answer",
    "instruction": "output",
}
STAND_IN = "-"
_ASSISTANT = ("assistant", "gpt", "function_call")


def find_kind(row: Mapping[str, Any]) -> str:
    """Find the column a file's rows ask with.

    Raises:
        RecordError: There is none.
    """
    kind = _kind_of(row)
    if kind is not None:
        return kind
    known = ", ".join(RESPONSE_COLUMNS)
    raise RecordError(
        "E_RECORD_FORM",
        f"found {found_columns(row)}, expected one of {known} (name other columns with --map field=column)",
    )


def _kind_of(row: Mapping[str, Any]) -> str | None:
    return next((kind for kind in RESPONSE_COLUMNS if row.get(kind) is not None), None)


def as_question(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Give the row with a stand-in for its answer, and nothing but what a record has.

    Args:
        row: Column name -> value.
        kind: The column it asks with. An assistant's turn at the end of a conversation is an answer
            and goes, unless the row has a `response` beside it.

    Raises:
        RecordError: The row does not ask with that column.
    """
    if row.get(kind) is None:
        other = _kind_of(row)
        why = f": the file's first record asks with it, this one with `{other}`" if other else ""
        raise RecordError(
            "E_RECORD_FIELD", f"field `{kind}` is missing or null, expected a prompt{why}"
        )
    labels = {name: row[name] for name in _LABELS if row.get(name) is not None}
    prompt = {kind: row.get(kind)}
    if kind in ("messages", "conversations"):
        turns = row.get(kind)
        if isinstance(turns, list) and row.get("response") is None and _ends_in_answer(turns):
            turns = turns[:-1]
        prompt = {"messages": turns}
    elif kind == "instruction":
        beside = ("input", "history")
        prompt |= {name: row[name] for name in beside if row.get(name) is not None}
    # The answer's place comes last: in a question/answer row it is the `answer` among the labels.
    return {**prompt, **labels, RESPONSE_COLUMNS[kind]: STAND_IN}


def _ends_in_answer(turns: list[Any]) -> bool:
    last = turns[-1] if turns else None
    return isinstance(last, Mapping) and (last.get("role") or last.get("from")) in _ASSISTANT


def with_answer(question: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Give a question's row with an answer."""
    kind = next(name for name in RESPONSE_COLUMNS if name in question)
    return {**question, RESPONSE_COLUMNS[kind]: text}

"""Rows of users' files as records: which form a row has, and what prompt, response and labels it holds.

In: a row (a dict) and where it stood. Out: a `Record`, or a `RecordError` naming the field. The form is detected once a
file, from its first readable row, and printed; after that every row must have it. Guessing per row was rejected: a file
whose rows mean different things is a mistake to show, not to smooth over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from fam_engine._rust_tokenize import texts_digest
from fam_engine.data.reading import Row
from fam_engine.data.turns import (
    NOTHING,
    Message,
    Told,
    joined_turns,
    read_told,
    read_turns,
    strings_in,
    text_of,
    type_name,
)
from fam_engine.errors import RecordError


@dataclass(frozen=True)
class Record:
    """One answer to be scored.

    Attributes:
        file: File it came from, as the user wrote it.
        line: Line (JSON Lines) or row (Parquet) number in it, from 1.
        context: The turns before the answer.
        verbatim: The text before the answer when no template is used.
        response: The answer's text; empty only where the answer is calls of tools and nothing else.
        id: Name of the record, `file:line` by default.
        source: Who wrote the answer; the file's stem by default.
        group: What the answer answers; None: the hash of the prompt's ids, encoded alone and uncut.
        correct: Whether the answer is right, where known.
        told: What the template is told beside the turns.
        turn: The answer as a turn, where it is more than one text.
    """

    file: str
    line: int
    context: tuple[Message, ...]
    verbatim: str
    response: str
    id: str
    source: str
    group: str | None = None
    answer: str | None = None
    correct: bool | None = None
    task: str | None = None
    told: Told = NOTHING
    turn: Message | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is roles and texts, nothing more."""
        is_text = not self.told and self.turn is None
        return is_text and all([turn.given is None for turn in self.context])

    def strings_beside(self) -> Iterable[str]:
        """Give every text that a template reads beside the turns' own: what it is told, calls, parts, names.

        Raises:
            RecordError: There is something that JSON does not have.
        """
        if self.is_plain:
            return ()
        given = [turn.given for turn in (*self.context, self.answer_turn())]
        return strings_in([self.told.tools, self.told.kwargs, given])

    @property
    def is_more_than_texts(self) -> bool:
        """Whether the record has tools, or a turn or the answer calls some or has reasoning apart from its text."""
        turns = self.context if self.turn is None else (*self.context, self.turn)
        return self.told.tools is not None or any(turn.is_written for turn in turns)

    def text_digest(self) -> int:
        """Name all that the model may read of it, prompt and response, by 64 bits, signed."""
        parts = [part for turn in self.context for part in (turn.role, turn.content)]
        if not self.is_plain:
            given = [turn.given for turn in (*self.context, self.answer_turn())]
            parts.append(json.dumps([self.told.tools, self.told.kwargs, given]))
        return texts_digest([*parts, self.response])

    def answer_turn(self) -> Message:
        """Give the answer as a turn."""
        return self.turn or Message("assistant", self.response)


# What rows of any form may have beside their texts for a model to read.
TOLD = ("system", "tools", "chat_template_kwargs")
# The turns before the answer, the verbatim prompt, the answer.
_Parts = tuple[tuple[Message, ...], str, Message]
_Reader = Callable[[Mapping[str, Any]], _Parts]
Layout = Literal["turns", "turns and answer", "prompt", "question", "instruction"]
# Which turns of the assistant training learns: the answer, or each.
TrainOn = Literal["last", "all-assistant"]


@dataclass(frozen=True)
class RecordForm:
    """One way rows are written: the columns it needs, and how to read them.

    Attributes:
        name: What a user would call it.
        layout: How the columns make a record, in the words of the reader in Rust.
        columns: Columns a row must have to be of this form, the one of the answer last.
        read: Row -> (turns before the answer, verbatim prompt, answer).
    """

    name: str
    layout: Layout
    columns: tuple[str, ...]
    read: _Reader

    @property
    def beside(self) -> tuple[str, ...]:
        """Columns that a row may have beside these, and what the model reads depends on."""
        return ("input", "history", *TOLD) if self.layout == "instruction" else TOLD

    @property
    def refuses_response(self) -> bool:
        """Whether a `response` beside its own columns would be a second answer."""
        return "response" not in self.columns


def detect_form(row: Mapping[str, Any]) -> RecordForm:
    """Find the form of a row.

    Raises:
        RecordError: No known form has its columns here.
    """
    form = _form_of(row)
    if form is not None:
        return form
    known = ", ".join("/".join(form.columns) for form in FORMS)
    raise RecordError(
        "E_RECORD_FORM",
        f"found {found_columns(row)}, expected one of {known} (name other columns with --map field=column)",
    )


def found_columns(row: Mapping[str, Any]) -> str:
    """Name the columns of a row, and which hold nothing: a --map may name some that are not there."""
    names = (f"`{name}`{' (null)' * (value is None)}" for name, value in islice(row.items(), 8))
    return ", ".join(names) or "no columns"


def _form_of(row: Mapping[str, Any]) -> RecordForm | None:
    return next((form for form in FORMS if not _missing(row, form)), None)


def _missing(row: Mapping[str, Any], form: RecordForm) -> list[str]:
    return [column for column in form.columns if row.get(column) is None]


def map_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Rename a row's columns as `--map field=column` asks."""
    if not columns:
        return row
    taken = set(columns.values())
    mapped = {name: value for name, value in row.items() if name not in taken}
    mapped.update({name: row.get(column) for name, column in columns.items()})
    return mapped


def mapped_row(row: Row, columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Give the columns of a row that was read, renamed as `--map` asks.

    Raises:
        RecordError: It could not be read.
    """
    if row.columns is None:
        raise RecordError(row.code or "E_JSON", row.reason or "")
    return map_columns(row.columns, columns)


def column_of(field: str, columns: Mapping[str, str]) -> str | None:
    """Give the column of a file that `map_columns` makes a field of; None: no column is."""
    if field in columns:
        return columns[field]
    return None if field in columns.values() else field


def read_record(
    row: Mapping[str, Any],
    form: RecordForm,
    *,
    file: str,
    line: int,
    stem: str,
    train_on: TrainOn | None = None,
) -> Record:
    """Read a row of a known form.

    Args:
        row: Column name -> value.
        form: The file's form.
        file: Name of the file for messages and ids.
        line: Line or row number, from 1.
        stem: Default for `source`.
        train_on: What training is to learn of it; None: it is not to be learnt, and whatever weight a turn has is
            passed by.

    Raises:
        RecordError: A field is missing, of a wrong type, or empty; or there is nothing to learn.
    """
    if missing := _missing(row, form):
        raise _missing_field(missing[0], row, form)
    if form.refuses_response and row.get("response") not in (None, ""):
        raise _two_answers(form)
    parts = _with_system(row, form.read(row))
    if train_on is not None:
        parts = _to_learn(parts, train_on)
    context, verbatim, answer = parts
    if answer.role != "assistant":
        raise _no_answer(form.columns[-1])
    if not answer.is_answer:
        raise RecordError("E_EMPTY_RESPONSE", "the response is empty, expected some text")
    told = read_told(row)
    for text in (verbatim, answer.content, *(message.content for message in context)):
        _refuse_surrogates(text)
    # In the question/answer form `answer` is the response itself, not the gold answer.
    gold = None if "answer" in form.columns else gold_answer(row)
    record = Record(
        file=file,
        line=line,
        context=context,
        verbatim=verbatim,
        response=answer.content,
        id=_label(row, "id") or f"{file}:{line}",
        source=_label(row, "source") or stem,
        group=_label(row, "group"),
        answer=gold,
        correct=_flag(row, "correct"),
        task=_label(row, "task"),
        told=told,
        turn=None if answer.given is None else answer,
    )
    for text in record.strings_beside():
        _refuse_surrogates(text)
    return record


def _missing_field(name: str, row: Mapping[str, Any], form: RecordForm) -> RecordError:
    expected = "a list of turns" if name in ("messages", "conversations") else "text"
    reason = f"field `{name}` is missing or null, expected {expected}"
    if other := _form_of(row):
        reason += f": the file's first record is of the form {form.name}, this one of {other.name}"
    return RecordError("E_RECORD_FIELD", reason)


def _two_answers(form: RecordForm) -> RecordError:
    own = form.columns[-1]
    if form.layout == "turns":
        hint = "leave one of them out; with `messages` and `response` the response is the answer"
    else:
        hint = f"--map {own}=response takes the response; without that column `{own}` is taken"
    return RecordError(
        "E_RECORD_FORM",
        f"has a `response` beside `{own}`, and either could be the answer ({hint})",
    )


def gold_answer(row: Mapping[str, Any]) -> str | None:
    """Give a row's `answer` as text; a JSON true or false is the word.

    Raises:
        RecordError: It is something else.
    """
    value = row.get("answer")
    return str(value).lower() if isinstance(value, bool) else _label(row, "answer")


def _refuse_surrogates(text: str) -> None:
    # A lone surrogate cannot be written as UTF-8, so no tokenizer has seen it.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordError(
            "E_RECORD_TEXT", "the text holds a lone surrogate, expected Unicode"
        ) from None


def _label(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RecordError(
        "E_RECORD_TYPE", f"field `{name}` is {type_name(value)}, expected text or a number"
    )


def _flag(row: Mapping[str, Any], name: str) -> bool | None:
    value = row.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise RecordError(
        "E_RECORD_TYPE", f"field `{name}` is {type_name(value)}, expected true or false"
    )


def _conversation(turns: tuple[Message, ...], name: str) -> _Parts:
    if not turns:
        raise _no_answer(name)
    return _ending(turns)


def _ending(turns: tuple[Message, ...]) -> _Parts:
    return turns[:-1], joined_turns(turns[:-1]), turns[-1]


def _no_answer(name: str) -> RecordError:
    return RecordError("E_RECORD_ROLE", f"`{name}` does not end in an assistant turn")


def _to_learn(parts: _Parts, train_on: TrainOn) -> _Parts:
    """Have a conversation end in a turn to learn, by what its turns' weights say.

    Where each turn of the assistant is learnt, what comes after the last one to learn is cut: chats are often logged up
    to a question nobody answered.
    """
    context, _, answer = parts
    turns = (*context, answer)
    for turn in turns:
        if turn.role == "assistant" and turn.weight not in (0, 1):
            raise RecordError(
                "E_RECORD_WEIGHT", f"an assistant turn has weight {turn.weight!r}, expected 0 or 1"
            )
    if train_on == "last":
        if not answer.weight:
            raise RecordError(
                "E_NO_TARGETS", "the answer has weight 0, which says that it is not to be learnt"
            )
        return parts
    places = (place for place in reversed(range(len(turns))) if turns[place].is_answer)
    last = next((place for place in places if turns[place].weight), None)
    if last is None:
        raise RecordError(
            "E_NO_TARGETS", "no assistant turn says anything to be learnt (one of weight 0 is not)"
        )
    return parts if turns[last] is answer else _ending(turns[: last + 1])


def _with_system(row: Mapping[str, Any], parts: _Parts) -> _Parts:
    """Put what a column says to the model before everything into a turn of its own, as LLaMA-Factory does."""
    context, verbatim, answer = parts
    if row.get("system") in (None, ""):
        return parts
    system = Message("system", text_of(row, "system"))
    if context and context[0].role in ("system", "developer"):
        if context[0].content == system.content:
            return parts
        raise RecordError(
            "E_RECORD_ROLE",
            "field `system` and the first turn, a system turn, say different things",
        )
    return (system, *context), f"{system.content}\n{verbatim}", answer


def _answer(row: Mapping[str, Any], name: str) -> Message:
    return Message("assistant", text_of(row, name))


def _read_messages(row: Mapping[str, Any]) -> _Parts:
    return _conversation(read_turns(row.get("messages"), "messages"), "messages")


def _read_sharegpt(row: Mapping[str, Any]) -> _Parts:
    return _conversation(read_turns(row.get("conversations"), "conversations"), "conversations")


def _read_messages_response(row: Mapping[str, Any]) -> _Parts:
    turns = read_turns(row.get("messages"), "messages")
    return turns, joined_turns(turns), _answer(row, "response")


def _read_prompt(row: Mapping[str, Any], answer: str) -> _Parts:
    """Read TRL's two prompt forms: text, or a list of turns with the answer as a list of one."""
    if isinstance(row.get("prompt"), list):
        turns = read_turns(row["prompt"], "prompt")
        if isinstance(row.get(answer), list):
            return _conversation((*turns, *read_turns(row[answer], answer)), answer)
        return turns, joined_turns(turns), _answer(row, answer)
    prompt = text_of(row, "prompt")
    return (Message("user", prompt),), prompt, _answer(row, answer)


def _read_question(row: Mapping[str, Any]) -> _Parts:
    question = text_of(row, "question")
    return (Message("user", question),), f"{question}\n", _answer(row, "answer")


def _read_instruction(row: Mapping[str, Any]) -> _Parts:
    text = text_of(row, "instruction")
    if row.get("input"):
        text = f"{text}\n\n{text_of(row, 'input')}"
    turns = (*_read_history(row), Message("user", text))
    return turns, joined_turns(turns), _answer(row, "output")


def _read_history(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Read the turns before an instruction: a list of pairs, what was asked and what was answered."""
    history = row.get("history")
    if history in (None, "", []):
        return ()
    turns = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise RecordError(
                "E_RECORD_TYPE",
                "field `history` is no list of pairs of texts, expected [[asked, answered], ...]",
            )
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)


# The first form whose columns are all there wins, so the more telling ones come first.
FORMS = (
    RecordForm(
        "messages and a response",
        "turns and answer",
        ("messages", "response"),
        _read_messages_response,
    ),
    RecordForm("messages", "turns", ("messages",), _read_messages),
    RecordForm("ShareGPT", "turns", ("conversations",), _read_sharegpt),
    RecordForm(
        "prompt and response",
        "prompt",
        ("prompt", "response"),
        lambda r: _read_prompt(r, "response"),
    ),
    RecordForm(
        "prompt and completion",
        "prompt",
        ("prompt", "completion"),
        lambda r: _read_prompt(r, "completion"),
    ),
    RecordForm("question and answer", "question", ("question", "answer"), _read_question),
    RecordForm("instruction", "instruction", ("instruction", "output"), _read_instruction),
)

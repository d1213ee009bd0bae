from __future__ import annotations

from typing import Any

import pytest

from fam_engine.config import RECORD_FIELDS
from fam_engine.data.records import FORMS, Record, detect_form, map_columns, read_record
from fam_engine.data.turns import Message
from fam_engine.errors import RecordError


def read(row: dict[str, Any]) -> Record:
    return read_record(row, detect_form(row), file="a.jsonl", line=3, stem="a")


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("row", "context", "verbatim", "response"),
    [
        ({"prompt": "P", "response": "R"}, [("user", "P")], "P", "R"),
        ({"prompt": "P", "completion": "R"}, [("user", "P")], "P", "R"),
        ({"question": "Q", "answer": "A"}, [("user", "Q")], "Q\n", "A"),
        ({"instruction": "I", "output": "O"}, [("user", "I")], "I\n", "O"),
        ({"instruction": "I", "input": "x", "output": "O"}, [("user", "I\n\nx")], "I\n\nx\n", "O"),
        ({"instruction": "I", "input": "", "output": "O"}, [("user", "I")], "I\n", "O"),
        ({"messages": CHAT}, [("user", "Hi")], "Hi\n", "Hello"),
        ({"messages": CHAT[:1], "response": "Yo"}, [("user", "Hi")], "Hi\n", "Yo"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, [("user", "Hi")], "Hi\n", "Hello"),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
            [("user", "Hi")],
            "Hi\n",
            "Yo",
        ),
    ],
)
def test_every_form_gives_context_and_response(
    row: dict[str, Any], context: list[tuple[str, str]], verbatim: str, response: str
) -> None:
    record = read(row)
    assert record.context == tuple(Message(*turn) for turn in context)
    assert (record.verbatim, record.response) == (verbatim, response)


@pytest.mark.parametrize(
    ("row", "context", "verbatim"),
    [
        ({"messages": CHAT}, [("user", "Hi")], "S\nHi\n"),
        ({"prompt": "P", "response": "R"}, [("user", "P")], "S\nP"),
        ({"instruction": "I", "output": "O"}, [("user", "I")], "S\nI\n"),
        ({"messages": [{"role": "system", "content": "S"}, *CHAT]}, [("user", "Hi")], "S\nHi\n"),
    ],
)
def test_a_column_may_hold_the_system_turn(
    row: dict[str, Any], context: list[tuple[str, str]], verbatim: str
) -> None:
    record = read({**row, "system": "S"})
    assert record.context == (Message("system", "S"), *(Message(*turn) for turn in context))
    assert record.verbatim == verbatim
    assert read({"prompt": "P", "response": "R", "system": ""}).context == (Message("user", "P"),)


def test_an_instruction_may_have_turns_before_it() -> None:
    row = {"instruction": "I", "input": "x", "output": "O", "system": "S"}
    record = read({**row, "history": [["a", "b"], ["c", "d"]]})
    assert [turn.role for turn in record.context] == ["system", *("user", "assistant") * 2, "user"]
    assert record.verbatim == "S\na\nb\nc\nd\nI\n\nx\n"
    for nothing in ([], "", None):
        assert read({**row, "history": nothing}) == read(row)


def test_what_stands_in_for_null_in_other_columns_is_absent() -> None:
    row = {"prompt": "P", "response": "R"}
    assert read({**row, "tools": "", "chat_template_kwargs": ""}) == read(row)
    turns = [{**turn, "from": None, "value": None} for turn in CHAT]
    assert read({"messages": turns}) == read({"messages": CHAT})


def test_labels_have_defaults_and_are_kept() -> None:
    plain = read({"prompt": "P", "response": "R"})
    assert (plain.id, plain.source, plain.group, plain.correct) == ("a.jsonl:3", "a", None, None)
    row = {"prompt": "P", "response": "R", "id": 7, "source": "gpt", "group": "g", "correct": True}
    labelled = read({**row, "answer": "18", "task": "gsm8k"})
    assert (labelled.id, labelled.source, labelled.group) == ("7", "gpt", "g")
    assert (labelled.correct, labelled.answer, labelled.task) == (True, "18", "gsm8k")


def test_the_answer_of_a_question_is_the_response_not_the_gold_answer() -> None:
    assert read({"question": "Q", "answer": "A"}).answer is None


def test_a_gold_answer_may_be_true_or_false() -> None:
    assert read({"prompt": "P", "response": "R", "answer": True}).answer == "true"
    with pytest.raises(RecordError, match="`answer` is a list"):
        read({"prompt": "P", "response": "R", "answer": ["yes"]})


@pytest.mark.parametrize(
    ("row", "code", "named"),
    [
        ({"prompt": "P", "response": ""}, "E_EMPTY_RESPONSE", "empty"),
        ({"prompt": 3, "response": "R"}, "E_RECORD_TYPE", "`prompt`"),
        ({"prompt": "P", "response": ["R"]}, "E_RECORD_TYPE", "`response`"),
        (
            {"prompt": "P", "response": "R", "correct": "true"},
            "E_RECORD_TYPE",
            "is a text, expected true",
        ),
        ({"messages": [None]}, "E_RECORD_TYPE", "is null, expected an object"),
        ({"prompt": "P", "response": "R", "source": {}}, "E_RECORD_TYPE", "`source`"),
        ({"messages": CHAT[:1]}, "E_RECORD_ROLE", "assistant"),
        ({"prompt": "P", "response": "R", "system": 1}, "E_RECORD_TYPE", "`system`"),
        (
            {"messages": [{"role": "system", "content": "T"}, *CHAT], "system": "S"},
            "E_RECORD_ROLE",
            "field `system` and the first turn, a system turn, say different things",
        ),
        ({"instruction": "I", "output": "O", "history": "a"}, "E_RECORD_TYPE", "list of pairs"),
        ({"instruction": "I", "output": "O", "history": [["a"]]}, "E_RECORD_TYPE", "list of pairs"),
        ({"messages": "Hi"}, "E_RECORD_TYPE", "`messages`"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "E_RECORD_ROLE",
            "'robot', expected system, developer, user, assistant, tool",
        ),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "E_RECORD_ROLE", "human, user, gpt"),
        ({"messages": [{"role": "user"}]}, "E_RECORD_FIELD", "`content`"),
        ({"messages": ["Hi"]}, "E_RECORD_TYPE", "messages[0]"),
        ({"prompt": "P", "response": "\ud800"}, "E_RECORD_TEXT", "surrogate"),
        ({"text": "T"}, "E_RECORD_FORM", "found `text`, expected"),
        ({"text": "T", "response": None}, "E_RECORD_FORM", "found `text`, `response` (null), "),
    ],
)
def test_what_is_wrong_is_named(row: dict[str, Any], code: str, named: str) -> None:
    with pytest.raises(RecordError, match=r".") as caught:
        read(row)
    assert caught.value.code == code
    assert named in caught.value.reason


def test_columns_can_be_mapped() -> None:
    row = {"frage": "Q", "antwort": "A", "id": "x"}
    mapped = map_columns(row, {"prompt": "frage", "response": "antwort"})
    assert mapped == {"prompt": "Q", "response": "A", "id": "x"}


def test_every_column_of_every_form_can_be_mapped() -> None:
    columns = {column for form in FORMS for column in (*form.columns, *form.beside)}
    assert columns < set(RECORD_FIELDS)


def test_a_row_of_another_form_than_its_file_is_refused() -> None:
    form = detect_form({"prompt": "P", "response": "R"})
    with pytest.raises(RecordError) as caught:
        read_record({"question": "Q", "answer": "A"}, form, file="f", line=1, stem="f")
    assert (caught.value.code, caught.value.reason) == (
        "E_RECORD_FIELD",
        "field `prompt` is missing or null, expected text: the file's first record is of the form "
        "prompt and response, this one of question and answer",
    )


def test_a_row_of_no_form_says_what_its_file_needs() -> None:
    form = detect_form({"messages": CHAT})
    with pytest.raises(RecordError) as caught:
        read_record({"text": "T"}, form, file="f", line=1, stem="f")
    assert caught.value.reason == "field `messages` is missing or null, expected a list of turns"

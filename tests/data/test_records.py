from __future__ import annotations

import math
from typing import Any

import pytest

from fam_engine.config import RECORD_FIELDS
from fam_engine.data.records import (
    FORMS,
    Record,
    TrainOn,
    detect_form,
    map_columns,
    read_record,
)
from fam_engine.data.turns import Message
from fam_engine.errors import RecordError


def read(row: dict[str, Any], train_on: TrainOn | None = None) -> Record:
    form = detect_form(row)
    return read_record(row, form, file="a.jsonl", line=3, stem="a", train_on=train_on)


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
    ("row", "remedy"),
    [
        ({"question": "Q", "answer": "gold"}, "--map answer=response takes the response"),
        ({"instruction": "I", "output": "O"}, "--map output=response takes the response"),
        ({"conversations": [{"from": "gpt", "value": "Yo"}]}, "leave one of them out"),
    ],
)
def test_a_response_beside_the_answer_of_another_form_is_refused(
    row: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(RecordError, match="has a `response` beside `") as caught:
        read(row | {"response": "R"})
    assert (caught.value.code, remedy in caught.value.reason) == ("E_RECORD_FORM", True)
    for blank in (None, ""):
        assert read(row | {"response": blank}).response != "R"
    if "question" in row:
        mapped = read(dict(map_columns(row | {"response": "R"}, {"answer": "response"})))
        assert (mapped.response, mapped.verbatim) == ("R", "Q\n")


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


def assistant(content: str, **beside: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **beside}


USER = {"role": "user", "content": "q"}
CALLING = assistant("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])


@pytest.mark.parametrize("weight", [0, 0.0, 1, 0.5, "low", None])
def test_a_weight_is_for_training_alone(weight: object) -> None:
    named = {"role": "user", "content": "q", "name": "Ann", "weight": weight}
    record = read({"messages": [named, assistant("a", weight=weight)]})
    assert (record.response, record.turn) == ("a", None)
    assert record.context[0].given == {key: named[key] for key in ("role", "name", "content")}


@pytest.mark.parametrize("train_on", ["last", "all-assistant"])
def test_weights_but_0_and_1_are_refused_in_training(train_on: TrainOn) -> None:
    for weight in (0.5, "1", [0], -1, math.nan):
        turns = [USER, assistant("a", weight=weight), USER, assistant("b")]
        with pytest.raises(RecordError, match="expected 0 or 1") as caught:
            read({"messages": turns}, train_on)
        assert caught.value.code == "E_RECORD_WEIGHT"
    # Hermes and OpenChat weigh the others' turns too, with what is never asked for.
    turns = [{**USER, "weight": 0}, assistant("a", weight=1.0)]
    assert read({"messages": turns}, train_on).response == "a"


def test_a_last_turn_of_weight_0_is_not_learnt() -> None:
    call = {"from": "function_call", "value": '{"name": "f"}', "weight": 0}
    for row in (
        {"messages": [USER, assistant("a"), USER, assistant("b", weight=0)]},
        {"conversations": [{"from": "human", "value": "q"}, call]},
        {"prompt": [USER], "completion": [assistant("b", weight=0)]},
    ):
        with pytest.raises(RecordError, match="weight 0") as caught:
            read(row, "last")
        assert caught.value.code == "E_NO_TARGETS"


@pytest.mark.parametrize(
    "end",
    [
        [USER],
        [USER, USER],
        [assistant("")],
        [USER, assistant("", weight=0)],
        [USER, assistant("bad", weight=0), USER],
        [USER, {"role": "tool", "content": "3"}, assistant("")],
    ],
)
@pytest.mark.parametrize("answer", [assistant("a"), CALLING])
def test_what_follows_the_last_turn_to_learn_is_cut(
    end: list[dict[str, Any]], answer: dict[str, Any]
) -> None:
    row = {"messages": [USER, answer, *end], "system": "S"}
    assert read(row, "all-assistant") == read({**row, "messages": [USER, answer]})
    columns = {"prompt": [USER, answer], "completion": end, "system": "S"}
    assert read(columns, "all-assistant") == read({**row, "messages": [USER, answer]})


def test_a_conversation_with_nothing_to_learn_is_refused() -> None:
    for row in (
        {"messages": [USER]},
        {"messages": [USER, assistant("")]},
        {"messages": [USER, assistant("a", weight=0), USER]},
        {"prompt": "p", "response": ""},
    ):
        with pytest.raises(RecordError, match="to be learnt") as caught:
            read(row, "all-assistant")
        assert caught.value.code == "E_NO_TARGETS"
    with pytest.raises(RecordError, match="does not end in an assistant turn"):
        read({"messages": []}, "all-assistant")


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

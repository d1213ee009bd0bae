from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine.data.records import Record
from fam_engine.data.turns import Message, Told
from fam_engine.errors import InputError
from fam_engine.jobs.training.examples import Examples, assistant_turns, is_far_off, split_off


def record(*turns: tuple[str, str], response: str = "last") -> Record:
    messages = tuple(Message(role, content) for role, content in turns)
    return Record("f", 1, messages, "", response, "id", "f")


def test_each_turn_of_the_assistant_is_an_example() -> None:
    whole = record(
        ("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), response="d"
    )
    first, last = assistant_turns(whole)
    assert (first.response, last.response) == ("b", "d")
    assert first.context == whole.context[:2]
    assert first.verbatim == "be brief\na\n"
    assert last.context == whole.context
    assert first.id != last.id
    # One conversation is one question: its turns stay on one side of a split.
    assert first.group == last.group is not None


def test_turns_without_words_and_single_turns() -> None:
    silent = record(("user", "a"), ("assistant", ""), ("tool", "3"))
    plain = record(("user", "a"))
    for one in (silent, plain):
        (only,) = assistant_turns(one)
        assert replace(only, group=None) == one


def groups_of(*records: Record) -> list[str | None]:
    """Give the group of each conversation, which all its examples share."""
    found = [{example.group for example in assistant_turns(one)} for one in records]
    assert all(len(groups) == 1 for groups in found)
    return [groups.pop() for groups in found]


def test_conversations_are_of_one_group_if_they_ask_the_same() -> None:
    greeting, system = ("assistant", "Welcome!"), ("system", "be brief")
    for first in ([greeting], [system, greeting], [("user", ""), greeting]):
        late, lost, again = groups_of(
            record(*first, ("user", "is late"), response="a"),
            record(*first, ("user", "is lost"), response="b"),
            record(*first, ("user", "is late"), ("assistant", "c"), ("user", "d")),
        )
        assert late == again != lost
        # A single answer is to the same question as a conversation that begins with it.
        single, longer = groups_of(
            record(*first, ("user", "is late")),
            record(*first, ("user", "is late"), ("assistant", "c"), ("user", "d")),
        )
        assert single == longer
    # Whatever is asked before the first answer belongs to the question.
    text, other, same = groups_of(
        record(("user", "text"), ("user", "a?"), ("assistant", "b"), ("user", "c")),
        record(("user", "text"), ("user", "b?"), ("assistant", "b"), ("user", "c")),
        record(("user", "text"), ("user", "a?"), ("assistant", "d"), ("user", "e")),
    )
    assert text == same != other


def test_conversations_that_ask_nothing_are_of_one_group_if_they_are_the_same() -> None:
    monologues = [record(("assistant", "I am"), ("tool", "3"), response=n) for n in "aba"]
    texts = [record(("user", ""), response=n) for n in "aba"] + [record(response="c")]
    one, same = groups_of(*(record(("system", "be brief"), response=n) for n in "ab"))
    assert one == same
    for one, other, same, *more in (groups_of(*monologues), groups_of(*texts)):
        assert one == same != other
        assert not {one, other, None} & set(more)


def test_a_turn_of_weight_0_is_context_only() -> None:
    turns = (Message("user", "a"), Message("assistant", "bad", None, 0), Message("user", "c"))
    whole = Record("f", 1, turns, "", "good", "id", "f")
    (only,) = assistant_turns(whole)
    assert (only.context, only.response) == (turns, "good")
    # It is of the group of other conversations that open so.
    other = assistant_turns(record(("user", "a"), ("assistant", "b"), ("user", "c")))
    assert {only.group} == {one.group for one in other}


def test_a_turn_that_only_calls_is_an_example_with_its_calls() -> None:
    given = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    calling = Message("assistant", "", given)
    whole = Record(
        "f",
        1,
        (Message("user", "a"), calling, Message("tool", "3")),
        "",
        "b",
        "id",
        "f",
        told=Told([{"name": "f"}]),
    )
    first, last = assistant_turns(whole)
    assert (first.turn, first.response, first.told) == (calling, "", whole.told)
    assert (last.turn, last.context) == (None, whole.context)


def examples(groups: list[str]) -> Examples:
    spool: Any = None
    count = len(groups)
    return Examples(
        Path(),
        spool,
        np.arange(count, dtype=np.int64),
        tuple(groups),
        np.ones(count, np.int64),
        np.ones(count, np.int64),
    )


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_a_split_cuts_no_group_and_leaves_no_side_empty(share: float) -> None:
    groups = [f"g{i // 3}" for i in range(60)]
    train, aside = split_off(examples(groups), share, seed=0)
    assert not set(train.groups) & set(aside.groups)
    assert sorted([*train.entries, *aside.entries]) == list(range(60))
    assert len(train.entries) >= 3
    assert abs(len(aside.entries) - share * 60) <= 3
    for part in (train, aside):
        assert [groups[entry] for entry in part.entries] == list(part.groups)


def test_a_split_follows_the_seed_and_not_the_order() -> None:
    groups = [f"g{i}" for i in range(40)]
    one, two, other = (
        set(split_off(examples(order), 0.3, seed=seed)[1].groups)
        for order, seed in ((groups, 1), (groups[::-1], 1), (groups, 2))
    )
    assert one == two != other


@pytest.mark.parametrize("seed", range(20))
def test_a_group_too_large_for_the_share_is_trained_on(seed: int) -> None:
    groups = ["poem"] * 140 + [f"sum {i}" for i in range(60)]
    _, aside = split_off(examples(groups), 0.1, seed=seed)
    assert len(aside.groups) == 20
    assert "poem" not in aside.groups
    _, aside = split_off(examples(["a"] * 99 + ["b"]), 0.05, seed=seed)
    assert aside.groups == ("b",)
    # Both are too large; the smaller is the lesser evil.
    _, aside = split_off(examples(["a"] * 60 + ["b"] * 40), 0.05, seed=seed)
    assert set(aside.groups) == {"b"}


def test_only_a_split_far_from_what_was_asked_for_is_told() -> None:
    assert [is_far_off(count, 20) for count in (9, 10, 30, 31)] == [True, False, False, True]
    # Of few examples even the nearest split may be one off.
    assert [is_far_off(count, 1.2) for count in (1, 2, 3)] == [False, False, True]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(InputError, match="at least two"):
        split_off(examples(["a", "a"]), 0.5, seed=0)

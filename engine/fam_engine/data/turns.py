"""Turns of conversations, as chat data sets have them: texts, lists of parts, calls of tools and their results.

In: the turns, the `tools` and the `chat_template_kwargs` of a row. Out: `Message`s and `Told`, or a `RecordError` that
names the place. A turn that is more than its role and text keeps what it said (`given`), so that a chat template is
handed what `apply_chat_template` of transformers would hand it: calls, ids, names and reasoning untouched, what is null
left out. Beside it stands its text, for all that needs only that: questions compared, prompts of models without a
template. Parts of other types than text are refused: nothing here sees images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fam_engine.errors import RecordError

# JSON Schemas of functions, as transformers calls them.
Tools = Sequence[Mapping[str, Any]]

# What a template is told of each conversation anyway.
CONVERSATION: Final = ("messages", "add_generation_prompt", "tools", "documents")

# Names of what is thought before it is said: the one that templates read, that of gpt-oss' template, one of data sets.
REASONING: Final = ("reasoning_content", "thinking", "reasoning")
# What a turn may say beside its content; the reader in Rust leaves turns that say it, or this, to Python.
_HANDED: Final = frozenset({"tool_calls", "tool_call_id", "name", *REASONING})
_WEIGHT: Final = "weight"
_BESIDE: Final = _HANDED | {_WEIGHT}
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SHAREGPT_ROLES |= {"system": "system", "tool": "tool", "observation": "tool"}
# A speaker of ShareGPT whose value is calls, as LLaMA-Factory has it.
_CALLER: Final = "function_call"
_SHAREGPT_ROLES |= {_CALLER: "assistant"}
_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
# Keys of the speaker and of what is said, and the speakers.
_OWN, _SHAREGPT = ("role", "content", _ROLES), ("from", "value", _SHAREGPT_ROLES)
# As the reader of files in Rust has it (`MAX_DEPTH`), of JSON that stands in a text too.
_MAX_DEPTH: Final = 64
# A whole text, or what opens or closes a level; a lone quotation mark is a text without end.
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)


@dataclass(frozen=True)
class Told:
    """What a template is told of one conversation beside its turns.

    Attributes:
        tools: The functions; None: it is told of none.
        kwargs: More by name, JSON values, as `apply_chat_template` of transformers hands it on; it wins over what is
            told of all conversations.
    """

    tools: Tools | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether it is told anything."""
        return self.tools is not None or bool(self.kwargs)


NOTHING: Final = Told()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; that of several parts is joined by line breaks, as vLLM joins it for templates without lists.
        given: The turn as a template is handed it, where it is more than role and text: `content` as a list of parts or
            left out, `tool_calls`, `tool_call_id`, `name`, reasoning under the names of templates.
        weight: As in OpenAI's files for fine-tuning: an assistant's turn of weight 0 is context that training does not
            learn. No template sees it. Whatever the file has; only training asks, and takes nothing but 0 and 1.
    """

    role: str
    content: str
    given: Mapping[str, Any] | None = None
    weight: object = 1

    @property
    def tool_calls(self) -> Sequence[Mapping[str, Any]]:
        """The calls it makes."""
        return self.given.get("tool_calls", ()) if self.given else ()

    @property
    def reasoning(self) -> str:
        """What it has been thought of before, apart from the content."""
        return str(self.given.get(REASONING[0], "")) if self.given else ""

    @property
    def is_written(self) -> bool:
        """Whether only a template says how it is written, since it is more than its text."""
        return bool(self.tool_calls or self.reasoning)

    @property
    def is_answer(self) -> bool:
        """Whether the assistant says or calls something in it."""
        return self.role == "assistant" and bool(self.content or self.tool_calls)

    @property
    def has_parts(self) -> bool:
        """Whether the content was given as a list of parts."""
        return self.given is not None and isinstance(self.given.get("content"), list)

    def for_template(self, *, takes_parts: bool = True) -> Mapping[str, Any]:
        """Give the turn as a template is handed it; `takes_parts`: whether the template renders lists of parts."""
        if self.given is None:
            return {"role": self.role, "content": self.content}
        if self.has_parts and not takes_parts:
            return {**self.given, "content": self.content}
        return self.given


def turns_to_json(turns: Sequence[Message]) -> str:
    """Write turns as a journal keeps them."""
    return json.dumps(
        [[m.role, m.content] if m.given is None else [m.role, m.content, m.given] for m in turns]
    )


def turns_from_json(text: str) -> list[Message]:
    """Read back what `turns_to_json` wrote."""
    return [Message(*turn) for turn in json.loads(text)]


def joined_turns(turns: Sequence[Message]) -> str:
    """Turns as plain text for models without a template: one a line."""
    return "".join(f"{turn.content}\n" for turn in turns)


def strings_in(value: object) -> Iterator[str]:
    """Give every text in a JSON value, names of members too.

    Raises:
        RecordError: It holds what JSON does not have; Parquet may.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from strings_in(name)
            yield from strings_in(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from strings_in(member)
    elif not isinstance(value, bool | int | float | None):
        raise RecordError(
            "E_RECORD_TYPE",
            f"`tools`, `chat_template_kwargs` or a turn holds a {type(value).__name__}, expected JSON",
        )


def read_turns(value: object, name: str) -> tuple[Message, ...]:
    """Read a list of turns, `role`/`content` or ShareGPT's `from`/`value`.

    Raises:
        RecordError: It is none.
    """
    if not isinstance(value, list):
        raise RecordError(
            "E_RECORD_TYPE", f"field `{name}` is {type_name(value)}, expected a list of turns"
        )
    return tuple(_turn(turn, f"{name}[{index}]") for index, turn in enumerate(value))


def read_told(row: Mapping[str, Any]) -> Told:
    """Read a row's `tools` and `chat_template_kwargs`: values, or their JSON as text, as Parquet files have them.

    Raises:
        RecordError: One is something else.
    """
    return Told(_read_tools(row.get("tools")), _read_kwargs(row.get("chat_template_kwargs")))


def _read_tools(value: object) -> Tools | None:
    if isinstance(value, str) and value:
        value = _from_json(value, _no_tools)
    if value is None or value == "":  # LLaMA-Factory writes rows without tools so
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise _no_tools(type_name(value))
    for index, tool in enumerate(value):
        _check_named(tool, f"tools[{index}]")
    return value


def _read_kwargs(value: object) -> Mapping[str, Any]:
    if isinstance(value, str) and value:
        value = _from_json(value, _no_kwargs)
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise _no_kwargs(type_name(value))
    for name in value:
        if name in CONVERSATION:
            raise _no_kwargs(f"an object with `{name}`, which comes from the record itself")
    # A column of Parquet has nulls for what other rows say.
    return {name: member for name, member in value.items() if member is not None}


def _from_json(text: str, refusal: Callable[[str], RecordError]) -> object:
    if _is_deep(text):
        raise refusal(f"a text whose JSON nests deeper than {_MAX_DEPTH}")
    try:
        return json.loads(text)
    except ValueError:
        raise refusal("a text that is no JSON") from None


def _is_deep(text: str) -> bool:
    """Whether a text of JSON nests deeper than a file may, so that writing it again could end in a RecursionError."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return False
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > _MAX_DEPTH or match[0] == '"':
            break
    return depth > _MAX_DEPTH


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Give a field that must be text.

    Raises:
        RecordError: It is not.
    """
    value = row.get(name)
    if value is None:
        raise RecordError("E_RECORD_FIELD", f"field `{name}` is missing or null, expected text")
    if not isinstance(value, str):
        raise RecordError("E_RECORD_TYPE", f"field `{name}` is {type_name(value)}, expected text")
    return value


def type_name(value: object) -> str:
    """Name a value's type, as a user would."""
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list"}
    names |= {str: "a text", type(None): "null"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "no text")


def _turn(turn: object, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RecordError("E_RECORD_TYPE", f"`{name}` is {type_name(turn)}, expected an object")
    speaker, said, roles = _OWN if turn.get("from") is None else _SHAREGPT
    role = _role(turn.get(speaker), roles, name)
    if turn[speaker] == _CALLER:
        calls = _read_calls(text_of(turn, said), name)
        caller = {"role": role, "content": None, "tool_calls": calls}
        return _turn({**caller, _WEIGHT: turn.get(_WEIGHT)}, name)
    content = turn.get(said)
    if isinstance(content, str) and _BESIDE.isdisjoint(turn):
        return Message(role, content)
    handed = {key: value for key, value in turn.items() if key in _HANDED and value is not None}
    handed |= _reasoning(handed, name)
    _check_calls(handed.get("tool_calls", []), name)
    if isinstance(content, list):
        handed["content"] = [_part(part, f"{name}.content[{i}]") for i, part in enumerate(content)]
        content = "\n".join(part["text"] for part in handed["content"])
    elif content is not None or not handed.get("tool_calls"):
        content = text_of(turn, said)
        if handed:
            handed["content"] = content
    given = {"role": role, **handed} if handed else None
    weight = turn.get(_WEIGHT)
    return Message(role, content or "", given, 1 if weight is None else weight)


def _reasoning(handed: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """Give a turn's reasoning under the names that templates read, as transformers does."""
    given = {key: handed[key] for key in REASONING if key in handed}
    for key, value in given.items():
        if not isinstance(value, str):
            raise RecordError(
                "E_RECORD_TYPE", f"`{name}.{key}` is {type_name(value)}, expected text"
            )
    if not given:
        return {}
    first = next(iter(given.values()))
    return {"reasoning_content": first, "thinking": given.get("thinking", first)}


def _read_calls(text: str, name: str) -> Sequence[Mapping[str, Any]]:
    """Read the JSON of a call, or of a list of them, as the calls of a turn."""
    try:
        value = None if _is_deep(text) else json.loads(text)
    except ValueError:
        value = None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise RecordError(
            "E_RECORD_TYPE",
            f"`{name}` is from {_CALLER} and its value is not the JSON of a call or a list of calls, expected "
            f'{{"name": ..., "arguments": ...}}, nested {_MAX_DEPTH} deep at most',
        )
    return [{"type": "function", "function": call} for call in calls]


def _part(part: object, name: str) -> Mapping[str, Any]:
    """Read a part of a content; keys that are null are those of other parts in the same Parquet column."""
    found = type_name(part)
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return {key: value for key, value in part.items() if value is not None}
        found = f"a part of type {part.get('type')!r}"
    raise RecordError(
        "E_RECORD_PART", f"`{name}` is {found}, expected {{'type': 'text', 'text': ...}}"
    )


def _role(found: object, known: Mapping[str, str], name: str) -> str:
    if not isinstance(found, str) or found not in known:
        raise RecordError(
            "E_RECORD_ROLE", f"`{name}` has role {found!r}, expected {', '.join(known)}"
        )
    return known[found]


def _check_calls(calls: object, name: str) -> None:
    if not isinstance(calls, list):
        raise RecordError(
            "E_RECORD_TYPE", f"`{name}.tool_calls` is {type_name(calls)}, expected a list"
        )
    for index, call in enumerate(calls):
        _check_named(call, f"{name}.tool_calls[{index}]")


def _check_named(item: object, name: str) -> None:
    function = (item.get("function") or item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RecordError("E_RECORD_TYPE", f"`{name}` names no function")


def _no_tools(found: str) -> RecordError:
    return RecordError(
        "E_RECORD_TYPE",
        f"field `tools` is {found}, expected a list of functions' JSON Schemas "
        "(--map tools=COLUMN reads another column)",
    )


def _no_kwargs(found: str) -> RecordError:
    return RecordError(
        "E_RECORD_TYPE",
        f"field `chat_template_kwargs` is {found}, expected names and values for the chat template "
        "(--map chat_template_kwargs=COLUMN reads another column)",
    )

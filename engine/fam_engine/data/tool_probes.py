"""Whether a chat template writes every turn, what is said with tools, and what an answer reasons, or leaves it out.

In: turns and tools that a template has rendered. Out: what it left out, or nothing. It is not guessed from the
template's source: the same conversation is rendered once more with marked names of functions, arguments and results,
and a marker that does not come out again is what the template drops. A template that refuses the marked conversation
has looked at what was marked, so it is no reason to put the record aside. Ids of calls and names of speakers are not
looked for: most templates have no place for them, as `apply_chat_template` of transformers has it too. Nor is the
reasoning of earlier turns, which most templates leave out on purpose; that of the answer is.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final

from fam_engine.data.rendering import Renderer
from fam_engine.data.turns import REASONING, Message, Told, Tools
from fam_engine.errors import RecordError

# Letters and a number, so that no JSON, quoting or trimming changes it; the end keeps 1 out of 10.
_MARKER: Final = "famengineprobe{}end"
# Kinds of conversations kept; in a data set of more every turn of the others is looked for.
_MAX_KINDS: Final = 1024


def needs_probe(turns: Sequence[Message], tools: Tools | None) -> bool:
    """Whether a conversation says anything with tools."""
    return bool(tools) or any([turn.role == "tool" or turn.tool_calls for turn in turns])


class TurnCheck:
    """Which turns of conversations a template may leave out; what tools return is probed anyway.

    That a turn's text stands in a rendering is no proof that the template writes the turn: a short one stands there by
    chance. It is looked for only where the template is known to write every turn of conversations of this kind, whose
    first one is rendered with markers.

    Args:
        renderer: Of the template.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._writes_all: dict[Hashable, bool] = {}

    def doubtful(
        self, turns: Sequence[Message], told: Told, context: str, written: Set[int] | None
    ) -> list[int]:
        """Give the places of the turns that are to be looked for with markers.

        Args:
            turns: The turns.
            told: What else the template is told.
            context: As they are rendered.
            written: See `Renderer.written_turns`.
        """
        said = [i for i, turn in enumerate(turns) if turn.role != "tool" and turn.content.strip()]
        if written is not None:
            return [place for place in said if place not in written]
        if not self._knows(turns, told, said):
            return said
        return [place for place in said if turns[place].content.strip() not in context]

    def _knows(self, turns: Sequence[Message], told: Told, said: Sequence[int]) -> bool:
        """Whether the template writes every turn of such conversations, so far as is known."""
        roles = tuple([(turn.role, bool(turn.tool_calls)) for turn in turns])
        kwargs = json.dumps(told.kwargs, sort_keys=True) if told.kwargs else ""
        kind = (roles, tuple(said), told.tools is not None, kwargs)
        if kind not in self._writes_all and len(self._writes_all) < _MAX_KINDS:
            (dropped,) = find_dropped_turns(self._renderer, [(turns, told, said)])
            self._writes_all[kind] = dropped is None
        return self._writes_all.get(kind, False)


def find_dropped_turns(
    renderer: Renderer, conversations: Sequence[tuple[Sequence[Message], Told, Sequence[int]]]
) -> list[RecordError | None]:
    """Find turns that the template leaves out, such as those of a speaker it does not know.

    Args:
        renderer: Of the template.
        conversations: Turns, what the template is told, and the places of the turns to be looked for.

    Returns:
        For each of them, in order, an error that names the first turn left out; None: none is.
    """
    probes = [_TurnProbe(turns, told, places) for turns, told, places in conversations]
    return _asked(renderer, probes, add_generation_prompt=True)


def find_dropped(
    renderer: Renderer,
    conversations: Sequence[tuple[Sequence[Message], Told]],
    *,
    add_generation_prompt: bool,
) -> list[RecordError | None]:
    """Find what the template leaves out of conversations it renders.

    Returns:
        For each of them, in order, an error that names the first thing left out; None: nothing is.
    """
    has_answer = not add_generation_prompt
    probes = [_Probe(turns, told, has_answer=has_answer) for turns, told in conversations]
    return _asked(renderer, probes, add_generation_prompt=add_generation_prompt)


def _asked(
    renderer: Renderer, probes: Sequence[_Probe | _TurnProbe], *, add_generation_prompt: bool
) -> list[RecordError | None]:
    """Render conversations with their markers; give what of each does not come out."""
    rendered = renderer.render_batch(
        [probe.turns for probe in probes],
        add_generation_prompt=add_generation_prompt,
        told=[probe.told for probe in probes],
    )
    return [probe.dropped(text) for probe, text in zip(probes, rendered, strict=True)]


class _TurnProbe:
    """A conversation with markers in place of the texts of some turns."""

    def __init__(self, turns: Sequence[Message], told: Told, places: Sequence[int]) -> None:
        self._places = places
        self.told = told
        self.turns = list(turns)
        for place in places:
            self.turns[place] = _with_content(turns[place], _MARKER.format(place))

    def dropped(self, text: str | RecordError) -> RecordError | None:
        """Give the first turn that is not in its rendering."""
        if isinstance(text, RecordError):
            return None
        for place in self._places:
            if _MARKER.format(place) not in text.lower():  # some write a text in capitals
                return RecordError(
                    "E_TEMPLATE_TURN",
                    f"the chat template leaves out turn {place + 1}, of role `{self.turns[place].role}`, so the model "
                    "would not see it (give one that writes it with --template FILE, or take it out of the data)",
                )
        return None


class _Probe:
    """A conversation with markers in place of all that tools say, and what each marker stands for."""

    def __init__(self, turns: Sequence[Message], told: Told, *, has_answer: bool = False) -> None:
        self._left_out: list[RecordError] = []
        tools = told.tools and [
            _renamed(tool, self._mark(f"`tools[{index}]`")) for index, tool in enumerate(told.tools)
        ]
        self.told = replace(told, tools=tools)
        self.turns = [self._marked(turn, index) for index, turn in enumerate(turns)]
        if has_answer and turns[-1].reasoning:
            self.turns[-1] = self._with_reasoning_marked(self.turns[-1])

    def dropped(self, text: str | RecordError) -> RecordError | None:
        """Give what of it is not in its rendering."""
        if isinstance(text, RecordError):
            return None
        for number, error in enumerate(self._left_out):
            if _MARKER.format(number) not in text:
                return error
        return None

    def _mark(self, name: str) -> str:
        return self._marker(
            RecordError(
                "E_TEMPLATE_TOOLS",
                f"the chat template leaves out {name}, so the model would not see it "
                "(give one that knows tools with --template FILE)",
            )
        )

    def _marker(self, error: RecordError) -> str:
        """Give a marker for something, and keep what to say where it does not come out."""
        self._left_out.append(error)
        return _MARKER.format(len(self._left_out) - 1)

    def _with_reasoning_marked(self, turn: Message) -> Message:
        assert turn.given is not None
        mark = self._marker(
            RecordError(
                "E_TEMPLATE_REASONING",
                "the chat template leaves out the reasoning of the answer (give one that writes it with --template "
                "FILE, or take it out of the data)",
            )
        )
        marked = dict.fromkeys((key for key in REASONING if key in turn.given), mark)
        return Message(turn.role, turn.content, {**turn.given, **marked})

    def _marked(self, turn: Message, index: int) -> Message:
        if turn.role == "tool":
            return _with_content(turn, self._mark(f"the tool's result in turn {index + 1}"))
        if not turn.tool_calls:
            return turn
        assert turn.given is not None
        calls = [
            self._marked_call(call, f"call {number} in turn {index + 1}")
            for number, call in enumerate(turn.tool_calls, start=1)
        ]
        return Message(turn.role, turn.content, {**turn.given, "tool_calls": calls})

    def _marked_call(self, call: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        function = call.get("function") or call
        arguments = function.get("arguments")
        call = _renamed(call, self._mark(name))
        if not arguments or not isinstance(arguments, str | Mapping):
            return call
        mark = self._mark(f"the arguments of {name}")
        marked = mark if isinstance(arguments, str) else dict.fromkeys(arguments, mark)
        return _with_function(call, {"arguments": marked})


def _with_content(turn: Message, text: str) -> Message:
    return Message(turn.role, text, turn.given and {**turn.given, "content": text})


def _renamed(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _with_function(item, {"name": name})


def _with_function(item: Mapping[str, Any], changed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Change a function, which stands under `function` or is the item itself."""
    if item.get("function"):
        return {**item, "function": {**item["function"], **changed}}
    return {**item, **changed}

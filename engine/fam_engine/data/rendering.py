"""Conversations rendered with a chat template.

In: conversations. Out: texts, or a `RecordError` for each that would not render. Most are rendered here, from what
their shape compiled to; the rest (those with tools, calls or lists of parts among them), in batches, by the template
itself. Both the template and its compilation run in
`template_worker`, a child with time and memory limits. A child that dies or hangs is replaced, and the batch that
killed it is rendered one by one, so that it costs one record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from os.path import commonprefix
from typing import Any, Final

from fam_engine.config import nearest
from fam_engine.data.children import JsonChild
from fam_engine.data.compiled_templates import (
    CompiledTemplate,
    Content,
    Guard,
    Shape,
    keeps_response,
)
from fam_engine.data.templates import TEMPLATE_DATE, Template
from fam_engine.data.turns import NOTHING, Message, Told
from fam_engine.errors import ModelRefusedError, RecordError, UsageError

Conversation = Sequence[Message]

# Of computing, for a request; the child's own limit, 2 s a rendering, ends what listens to Python. And wall seconds
# before a silent child is given up, on a machine that others use too.
_SECONDS_A_REQUEST, _PATIENCE_SECONDS = 10, 120.0
# Compiled shapes kept; a data set with more of them has its other conversations rendered in the child.
_MAX_SHAPES = 1024
# Different things that conversations tell the template: data in which each tells its own compiles nothing for them.
_MAX_KWARGS = 16
# What goes to the child at once: so much that the round trip costs nothing, and little of its memory.
_BATCH_CONVERSATIONS = 256
_BATCH_CHARACTERS = 1 << 20
# Stands for an answer when a template is asked what it adds around one.
PROBE: Final = "fam-engine-probe-response"
_ANSWERED: Final = (Message("user", "a"), Message("assistant", PROBE))
_PARTS: Final = ("fam-engine-probe-first", "fam-engine-probe-second")
_CALL: Final = {"id": "probe0000", "type": "function", "function": {"name": "f", "arguments": {}}}
# What stands before a turn of a role, where no template refuses a conversation that begins with it.
_BEFORE: Final[dict[str, list[dict[str, Any]]]] = {
    "assistant": [{"role": "user", "content": "a"}],
    "tool": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    ],
}


class Renderer:
    """Renders conversations with one template.

    Args:
        template: What to render with.

    Raises:
        ModelRefusedError: The template does not compile.
        UsageError: It is told something it does not read.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._shapes: dict[Shape, CompiledTemplate | None] = {}
        self._keeps: dict[Shape, bool] = {}
        self._kwargs = {"{}"}
        # Of the template without tools and of the one with.
        self._separators: dict[tuple[str, bool], str | None] = {}
        self._answer_ends: dict[bool, str] = {}
        self._names: list[str] = []
        self._child = self._start()

    def __enter__(self) -> Renderer:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the child."""
        self.close()

    def close(self) -> None:
        """Stop the child; may be called again."""
        self._child.close()

    def render(
        self, messages: Conversation, *, add_generation_prompt: bool, told: Told = NOTHING
    ) -> str:
        """Render one conversation.

        Raises:
            RecordError: The template refused it, or went beyond its limits.
        """
        (result,) = self.render_batch(
            [messages], add_generation_prompt=add_generation_prompt, told=[told]
        )
        if isinstance(result, RecordError):
            raise result
        return result

    def render_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        add_generation_prompt: bool,
        told: Sequence[Told] | None = None,
    ) -> list[str | RecordError]:
        """Render conversations.

        Args:
            conversations: Turns.
            add_generation_prompt: Whether each ends in the opening of an assistant's turn.
            told: What the template is told beside the turns, a conversation each; None: nothing.

        Returns:
            One text or error a conversation, in order.
        """
        results: dict[int, str | RecordError] = {}
        requests: dict[int, dict[str, Any]] = {}
        for index, messages in enumerate(conversations):
            known = told[index] if told else NOTHING
            compiled = self._compiled(messages, add_generation_prompt, known)
            contents = [message.content for message in messages]
            if compiled is not None and compiled.fits(contents):
                results[index] = compiled.render(contents)
            else:
                requests[index] = self._request(messages, add_generation_prompt, known)
        for batch in _batches(requests, conversations):
            rendered = self._ask_batch([requests[i] for i in batch])
            results.update(zip(batch, rendered, strict=True))
        return [results[index] for index in range(len(conversations))]

    def part_separator(self, role: str, told: Told = NOTHING) -> str | None:
        """Give what the template writes between two parts of a turn's text; None: it takes no lists.

        Found by rendering one: a template may refuse a list, write it as Python does, or leave it out.
        """
        known = (role, self._is_for_tools(told))
        if known not in self._separators:
            self._separators[known] = self._find_separator(role, told if known[1] else NOTHING)
        return self._separators[known]

    def answer_end(self, told: Told = NOTHING) -> str:
        """Give what the template writes after an answer that is a text.

        Raises:
            RecordError: It does not render a plain question and its answer.
        """
        is_for_tools = self._is_for_tools(told)
        if is_for_tools not in self._answer_ends:
            known = told if is_for_tools else NOTHING
            text = self.render(_ANSWERED, add_generation_prompt=False, told=known)
            self._answer_ends[is_for_tools] = text.partition(PROBE)[2]
        return self._answer_ends[is_for_tools]

    def openings(self) -> tuple[str, str]:
        """Give what the template asks for an answer with and what it writes before one, from where the two differ.

        Raises:
            RecordError: It does not render a plain question and its answer.
        """
        asked = self.render(_ANSWERED[:1], add_generation_prompt=True)
        given = self.render(_ANSWERED, add_generation_prompt=False).partition(PROBE)[0]
        shared = len(commonprefix([asked, given]))  # noqa: RUF071
        return asked[shared:], given[shared:]

    def reads(self, name: str) -> bool:
        """Whether the template reads what it is told under a name."""
        return name in self._names

    def _is_for_tools(self, told: Told) -> bool:
        """Whether a conversation is rendered by the template that is for tools."""
        return told.tools is not None and self._template.for_tools is not None

    def written_turns(self, messages: Conversation, told: Told) -> frozenset[int] | None:
        """Give the places of the turns whose texts are known to stand in what these turns are rendered to.

        None is no answer: then only rendering tells. It is so for all turns that call, and where more is told.
        """
        compiled = self._compiled(messages, True, told)
        if compiled is None or not compiled.fits([message.content for message in messages]):
            return None
        return compiled.written

    def compile(self, shape: Shape) -> CompiledTemplate | None:
        """Compile the template for a shape; None if only running it tells what it renders."""
        if shape in self._shapes:
            return self._shapes[shape]
        if len(self._shapes) >= _MAX_SHAPES:
            return None
        answer = self._ask({"compile": asdict(shape)})
        if answer is None:
            self._restart()
        compiled = None if answer is None or "error" in answer else _read_compiled(shape, answer)
        self._shapes[shape] = compiled
        return compiled

    def _compiled(
        self, messages: Conversation, add_generation_prompt: bool, told: Told
    ) -> CompiledTemplate | None:
        if told.tools is not None or any([message.given is not None for message in messages]):
            return None
        kwargs = json.dumps(told.kwargs, sort_keys=True) if told.kwargs else "{}"
        if len(self._kwargs) < _MAX_KWARGS:
            self._kwargs.add(kwargs)
        if kwargs not in self._kwargs:
            return None
        roles = tuple([message.role for message in messages])
        return self.compile(Shape(roles, add_generation_prompt, kwargs))

    def surely_keeps(self, messages: Conversation, response: str, told: Told = NOTHING) -> bool:
        """Whether the template is known to keep a response verbatim after its context.

        False is no answer: then the rendered texts tell.
        """
        turns = (*messages, Message("assistant", response))
        context, whole = self._compiled(messages, True, told), self._compiled(turns, False, told)
        if context is None or whole is None:
            return False
        keeps = self._keeps.get(context.shape)
        if keeps is None:
            keeps = self._keeps[context.shape] = keeps_response(context, whole)
        contents = [turn.content for turn in turns]
        return keeps and context.fits(contents) and whole.fits(contents)

    # -- the child -----------------------------------------------------------------------------

    def _request(
        self, messages: Conversation, add_generation_prompt: bool, told: Told
    ) -> dict[str, Any]:
        return {
            "messages": [
                m.for_template(
                    takes_parts=m.has_parts and self.part_separator(m.role, told) is not None
                )
                for m in messages
            ],
            "add_generation_prompt": add_generation_prompt,
            "tools": told.tools,
            "kwargs": told.kwargs,
        }

    def _find_separator(self, role: str, told: Told) -> str | None:
        parts = [{"type": "text", "text": text} for text in _PARTS]
        turns = [*_BEFORE.get(role, []), {"role": role, "content": parts}]
        if role in ("system", "developer"):
            turns.append({"role": "user", "content": "a"})
        request = self._request((), False, told) | {"messages": turns}
        (text,) = self._ask_batch([request])
        if isinstance(text, RecordError):
            return None
        _, first, rest = text.partition(_PARTS[0])
        between, second, _ = rest.partition(_PARTS[1])
        is_list = "'type'" in between or '"type"' in between
        return between if first and second and not is_list else None

    def _ask_batch(self, requests: Sequence[dict[str, Any]]) -> list[str | RecordError]:
        answers = self._ask({"render": requests})
        if answers is not None:
            return [_read_rendering(answer) for answer in answers]
        self._restart()
        if len(requests) == 1:
            return [RecordError("E_TEMPLATE_LIMIT", "the chat template ran out of time or memory")]
        return [result for request in requests for result in self._ask_batch([request])]

    def _restart(self) -> None:
        self.close()
        self._child = self._start()

    def _start(self) -> JsonChild:
        self._child = JsonChild("fam_engine.data.template_worker", _SECONDS_A_REQUEST)
        answer = self._ask(
            {
                "template": self._template.source,
                "for_tools": self._template.for_tools,
                "constants": {**self._template.constants, **self._template.kwargs},
                "date": TEMPLATE_DATE,
            }
        )
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else "the child process did not start"
            self.close()
            raise ModelRefusedError(
                f"the chat template does not compile: {reason}",
                code="E_TEMPLATE",
                where=self._template.where,
                hint="give one with --template FILE, or --template none",
            )
        self._names = answer["names"]
        self._check_kwargs()
        return self._child

    def _check_kwargs(self) -> None:
        """Refuse what the template does not read: a typing error would silently change nothing."""
        for name in self._template.kwargs:
            if not self.reads(name):
                self.close()
                raise UsageError(
                    f"chat_template_kwargs has `{name}`, which the chat template does not read"
                    f"{nearest(name, self._names)}",
                    code="E_TEMPLATE_KWARGS",
                    where=self._template.where,
                    hint="correct it, or leave it out",
                )

    def _ask(self, request: dict[str, Any]) -> Any:  # noqa: ANN401 - as the worker answers
        """Send a request; None if the child died or kept silent."""
        return self._child.ask(request, _PATIENCE_SECONDS)


def _batches(
    requests: Mapping[int, dict[str, Any]], conversations: Sequence[Conversation]
) -> Iterator[list[int]]:
    """Cut into batches bounded in number and in text; a long conversation is alone."""
    batch: list[int] = []
    room = _BATCH_CHARACTERS
    for index, request in requests.items():
        size = sum(len(message.content) for message in conversations[index])
        has_more = request["tools"] is not None or request["kwargs"]
        if has_more or any(m.given for m in conversations[index]):
            size = len(json.dumps(request))
        if batch and (size > room or len(batch) == _BATCH_CONVERSATIONS):
            yield batch
            batch, room = [], _BATCH_CHARACTERS
        batch.append(index)
        room -= size
    if batch:
        yield batch


def _read_rendering(answer: dict[str, str]) -> str | RecordError:
    if "error" in answer:
        return RecordError("E_TEMPLATE", f"the chat template failed: {answer['error']}")
    return answer["text"]


def _read_compiled(shape: Shape, answer: dict[str, Any]) -> CompiledTemplate:
    pieces = (p if isinstance(p, str) else Content(**p) for p in answer["pieces"])
    guards = (Guard(Content(**g["content"]), g["test"], g["text"]) for g in answer["guards"])
    return CompiledTemplate(shape, tuple(pieces), tuple(guards))

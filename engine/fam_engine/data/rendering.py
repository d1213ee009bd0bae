"""Conversations rendered with a chat template.

In: conversations. Out: texts, or a `RecordError` for each that would not render. Most are rendered here, from what
their shape compiled to; the rest, in batches, by the template itself. Both the template and its compilation run in
`template_worker`, a child with time and memory limits. A child that dies or hangs is replaced, and the batch that
killed it is rendered one by one, so that it costs one record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fam_engine.data.children import JsonChild
from fam_engine.data.compiled_templates import (
    CompiledTemplate,
    Content,
    Guard,
    Shape,
    keeps_response,
)
from fam_engine.data.records import Message
from fam_engine.data.templates import TEMPLATE_DATE, Template
from fam_engine.errors import ModelRefusedError, RecordError

Conversation = Sequence[Message]

# Of computing, for a request; the child's own limit, 2 s a rendering, ends what listens to Python. And wall seconds
# before a silent child is given up, on a machine that others use too.
_SECONDS_A_REQUEST, _PATIENCE_SECONDS = 10, 120.0
# Compiled shapes kept; a data set with more of them has its other conversations rendered in the child.
_MAX_SHAPES = 1024
# What goes to the child at once: so much that the round trip costs nothing, and little of its memory.
_BATCH_CONVERSATIONS = 256
_BATCH_CHARACTERS = 1 << 20


class Renderer:
    """Renders conversations with one template.

    Args:
        template: What to render with.

    Raises:
        ModelRefusedError: The template does not compile.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._shapes: dict[Shape, CompiledTemplate | None] = {}
        self._keeps: dict[Shape, bool] = {}
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

    def render(self, messages: Conversation, *, add_generation_prompt: bool) -> str:
        """Render one conversation.

        Raises:
            RecordError: The template refused it, or went beyond its limits.
        """
        (result,) = self.render_batch([messages], add_generation_prompt=add_generation_prompt)
        if isinstance(result, RecordError):
            raise result
        return result

    def render_batch(
        self, conversations: Sequence[Conversation], *, add_generation_prompt: bool
    ) -> list[str | RecordError]:
        """Render conversations.

        Returns:
            One text or error a conversation, in order.
        """
        results: dict[int, str | RecordError] = {}
        others: list[int] = []
        for index, messages in enumerate(conversations):
            contents = [message.content for message in messages]
            compiled = self._compiled(messages, add_generation_prompt)
            if compiled is not None and compiled.fits(contents):
                results[index] = compiled.render(contents)
            else:
                others.append(index)
        for batch in _batches(others, conversations):
            rendered = self._ask_batch([conversations[i] for i in batch], add_generation_prompt)
            results.update(zip(batch, rendered, strict=True))
        return [results[index] for index in range(len(conversations))]

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
        self, messages: Conversation, add_generation_prompt: bool
    ) -> CompiledTemplate | None:
        roles = tuple([message.role for message in messages])
        return self.compile(Shape(roles, add_generation_prompt))

    def surely_keeps(self, messages: Conversation, response: str) -> bool:
        """Whether the template is known to keep a response verbatim after its context.

        False is no answer: then the rendered texts tell.
        """
        turns = (*messages, Message("assistant", response))
        context, whole = self._compiled(messages, True), self._compiled(turns, False)
        if context is None or whole is None:
            return False
        keeps = self._keeps.get(context.shape)
        if keeps is None:
            keeps = self._keeps[context.shape] = keeps_response(context, whole)
        contents = [turn.content for turn in turns]
        return keeps and context.fits(contents) and whole.fits(contents)

    # -- the child -----------------------------------------------------------------------------

    def _ask_batch(
        self, conversations: Sequence[Conversation], add_generation_prompt: bool
    ) -> list[str | RecordError]:
        requests = [
            {
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "add_generation_prompt": add_generation_prompt,
            }
            for messages in conversations
        ]
        answers = self._ask({"render": requests})
        if answers is not None:
            return [_read_rendering(answer) for answer in answers]
        self._restart()
        if len(conversations) == 1:
            return [RecordError("E_TEMPLATE_LIMIT", "the chat template ran out of time or memory")]
        return [
            result
            for messages in conversations
            for result in self._ask_batch([messages], add_generation_prompt)
        ]

    def _restart(self) -> None:
        self.close()
        self._child = self._start()

    def _start(self) -> JsonChild:
        self._child = JsonChild("fam_engine.data.template_worker", _SECONDS_A_REQUEST)
        answer = self._ask(
            {
                "template": self._template.source,
                "constants": self._template.constants,
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
        return self._child

    def _ask(self, request: dict[str, Any]) -> Any:  # noqa: ANN401 - as the worker answers
        """Send a request; None if the child died or kept silent."""
        return self._child.ask(request, _PATIENCE_SECONDS)


def _batches(indices: Sequence[int], conversations: Sequence[Conversation]) -> Iterator[list[int]]:
    """Cut into batches bounded in number and in text; a long conversation is alone."""
    batch: list[int] = []
    room = _BATCH_CHARACTERS
    for index in indices:
        size = sum(len(message.content) for message in conversations[index])
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

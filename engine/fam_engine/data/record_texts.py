"""A record's texts on their way to ids: special tokens users wrote set apart, the context rendered.

In: records. Out: `Texts`, or a `RecordError` each. The context is what a model would see when asked: the template with
its generation prompt, or the prompt verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TypeVar

from fam_engine.data.records import Message, Record
from fam_engine.data.rendering import Renderer
from fam_engine.data.stand_ins import StandIns
from fam_engine.errors import RecordError

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Texts:
    """A record's texts, with stand-ins in place of the special tokens users wrote.

    Attributes:
        turns: The turns before the response.
        context: They as text: verbatim, or rendered.
        response: The answer.
        flags: What is unusual so far.
    """

    turns: tuple[Message, ...]
    context: str
    response: str
    flags: tuple[str, ...]


class TextMaker:
    """Makes the texts of records.

    Args:
        renderer: What renders contexts; None: they are taken verbatim.
        stand_ins: For the special tokens users wrote.
        parse_special: Whether those count as such, and so are left as they are.
    """

    def __init__(
        self, renderer: Renderer | None, stand_ins: StandIns, *, parse_special: bool
    ) -> None:
        self._renderer = renderer
        self._stand_ins = stand_ins
        self._parse_special = parse_special

    def make(self, records: Sequence[Record]) -> list[Texts | RecordError]:
        """Make the texts of records, in order."""
        texts = [self._read(record) for record in records]
        return for_good(for_good(texts, self.rendered), self._compared)

    def _read(self, record: Record) -> Texts | RecordError:
        written = (record.verbatim, record.response, *(m.content for m in record.context))
        if any(map(self._stand_ins.are_in, written)):
            # Restoring would turn these characters into special tokens' names.
            return RecordError("E_RECORD_TEXT", "the text holds reserved private-use characters")
        if not any(map(self._stand_ins.first_special, written)):
            return Texts(record.context, record.verbatim, record.response, ())
        return self.marked(record.context, record.verbatim, record.response)

    def marked(self, turns: Sequence[Message], verbatim: str, response: str = "") -> Texts:
        """Replace user-written special tokens, so that rendering cannot make them real."""
        put = str if self._parse_special else self._stand_ins.put
        marked = tuple(Message(turn.role, put(turn.content)) for turn in turns)
        return Texts(marked, put(verbatim), put(response), ("special_in_text",))

    def rendered(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Render the contexts."""
        if self._renderer is None:
            return list(texts)
        contexts = self._renderer.render_batch(
            [text.turns for text in texts], add_generation_prompt=True
        )
        return [
            Texts(text.turns, context, text.response, text.flags)
            if isinstance(context, str)
            else context
            for text, context in zip(texts, contexts, strict=True)
        ]

    def _compared(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Flag those whose response the template does not keep verbatim after the context."""
        compared: list[Texts | RecordError] = list(texts)
        if self._renderer is None:
            return compared
        unsure = [
            index
            for index, text in enumerate(texts)
            if not self._renderer.surely_keeps(text.turns, text.response)
        ]
        wholes = self._renderer.render_batch(
            [(*texts[i].turns, Message("assistant", texts[i].response)) for i in unsure],
            add_generation_prompt=False,
        )
        for index, whole in zip(unsure, wholes, strict=True):
            compared[index] = _flag_altered(texts[index], whole)
        return compared


def for_good(
    items: Sequence[A | RecordError], function: Callable[[Sequence[A]], Sequence[B | RecordError]]
) -> list[B | RecordError]:
    """Apply a function to what is no error, all at once, and leave the errors in their places."""
    results = iter(function([item for item in items if not isinstance(item, RecordError)]))
    return [item if isinstance(item, RecordError) else next(results) for item in items]


def _flag_altered(text: Texts, whole: str | RecordError) -> Texts | RecordError:
    if isinstance(whole, RecordError):
        return whole
    context = text.context
    start = len(context) if whole.startswith(context) else len(commonprefix([context, whole]))  # noqa: RUF071
    if text.response in whole[start:]:
        return text
    return Texts(text.turns, context, text.response, (*text.flags, "template_altered"))

"""A record's texts on their way to ids: special tokens users wrote set apart, the context rendered.

In: records. Out: `Texts`, or a `RecordError` each. The context is what a model would see when asked: the template with
its generation prompt, or the prompt verbatim.

An answer that calls tools, or has its reasoning apart, has no text of its own: it is what the template writes for that
turn after the generation prompt, up to what ends any answer. Where a template opens or ends such a turn otherwise, the
record is put aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, TypeVar

from fam_engine.data.records import Record
from fam_engine.data.rendering import PROBE, Renderer
from fam_engine.data.stand_ins import StandIns
from fam_engine.data.tool_probes import TurnCheck, find_dropped, find_dropped_turns, needs_probe
from fam_engine.data.turns import NOTHING, Message, Told
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
        told: What the template is told beside the turns.
        turn: The answer as a turn, where it is more than one text.
    """

    turns: tuple[Message, ...]
    context: str
    response: str
    flags: tuple[str, ...]
    told: Told = NOTHING
    turn: Message | None = None

    @property
    def is_written(self) -> bool:
        """Whether the response is what the template writes, special tokens of its own included."""
        return self.turn is not None and self.turn.is_written

    def whole(self) -> tuple[Message, ...]:
        """Give the turns with the response as the last."""
        return (*self.turns, self.turn or Message("assistant", self.response))

    @property
    def has_outer_space(self) -> bool:
        """Whether the response begins or ends in white space."""
        return self.response != self.response.strip()


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
        self._turn_check = TurnCheck(renderer) if renderer else None
        self._stand_ins = stand_ins
        self._parse_special = parse_special

    def make(self, records: Sequence[Record]) -> list[Texts | RecordError]:
        """Make the texts of records, in order."""
        texts = [self._read(record) for record in records]
        return for_good(for_good(texts, self.rendered), self._compared)

    def _read(self, record: Record) -> Texts | RecordError:
        written = [record.verbatim, record.response, *[m.content for m in record.context]]
        written += record.strings_beside()
        if any(map(self._stand_ins.are_in, written)):
            # Restoring would turn these characters into special tokens' names.
            return RecordError("E_RECORD_TEXT", "the text holds reserved private-use characters")
        texts = Texts(
            record.context, record.verbatim, record.response, (), record.told, record.turn
        )
        if any(map(self._stand_ins.first_special, written)):
            texts = self.marked(texts)
        return self._with_parts(texts)

    def marked(self, texts: Texts) -> Texts:
        """Replace user-written special tokens, so that rendering cannot make them real."""
        put = str if self._parse_special else self._stand_ins.put
        return Texts(
            tuple(_mapped(turn, put) for turn in texts.turns),
            put(texts.context),
            put(texts.response),
            ("special_in_text",),
            Told(*_mapped_json([texts.told.tools, texts.told.kwargs], put)),
            texts.turn and _mapped(texts.turn, put),
        )

    def _with_parts(self, texts: Texts) -> Texts:
        """Join an answer of several texts as the template joins them."""
        if self._renderer is None or texts.turn is None or not texts.turn.has_parts:
            return texts
        separator = self._renderer.part_separator("assistant", texts.told)
        if texts.is_written or separator is None:
            return texts
        assert texts.turn.given is not None
        response = separator.join(part["text"] for part in texts.turn.given["content"])
        return replace(texts, response=response)

    def rendered(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Render the contexts."""
        renderer = self._renderer
        if renderer is None:
            return [_without_template(text) for text in texts]
        contexts = renderer.render_batch(
            [text.turns for text in texts],
            add_generation_prompt=True,
            told=[text.told for text in texts],
        )
        rendered = [
            # `replace` takes a tenth of the time of a plain record.
            Texts(text.turns, context, text.response, text.flags, text.told, text.turn)
            if isinstance(context, str)
            else context
            for text, context in zip(texts, contexts, strict=True)
        ]
        return for_good(for_good(rendered, self._ended), self._checked)

    def _ended(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Put those aside whose template ends an answer otherwise than all answers are scored to end."""
        assert self._renderer is not None
        ended: list[Texts | RecordError] = list(texts)
        for index, text in enumerate(texts):
            if text.told.tools is not None and (error := _other_end(self._renderer, text.told)):
                ended[index] = error
        return ended

    def _checked(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Put those aside of which the template leaves out a turn, or what is said with tools."""
        assert self._renderer is not None
        assert self._turn_check is not None
        checked: list[Texts | RecordError] = list(texts)
        written = [self._renderer.written_turns(text.turns, text.told) for text in texts]
        doubtful = {
            index: places
            for index, (text, known) in enumerate(zip(texts, written, strict=True))
            if (places := self._turn_check.doubtful(text.turns, text.told, text.context, known))
        }
        left_out = find_dropped_turns(
            self._renderer,
            [(texts[i].turns, texts[i].told, places) for i, places in doubtful.items()],
        )
        unsure = [
            index
            for index, text in enumerate(texts)
            if needs_probe(text.turns, text.told.tools) and not _has_results(text, written[index])
        ]
        dropped = find_dropped(
            self._renderer,
            [(texts[i].turns, texts[i].told) for i in unsure],
            add_generation_prompt=True,
        )
        errors = [*zip(doubtful, left_out, strict=True), *zip(unsure, dropped, strict=True)]
        for index, error in errors:
            checked[index] = error or checked[index]
        return checked

    def _compared(self, texts: Sequence[Texts]) -> list[Texts | RecordError]:
        """Flag those whose response the template does not keep verbatim after the context."""
        compared: list[Texts | RecordError] = list(texts)
        renderer = self._renderer
        if renderer is None:
            return compared
        unsure = [
            index
            for index, text in enumerate(texts)
            if text.told.tools is not None
            or text.turn is not None
            or not renderer.surely_keeps(text.turns, text.response, text.told)
        ]
        wholes = self._wholes([texts[i] for i in unsure])
        spaced = [i for i in unsure if texts[i].has_outer_space and not texts[i].is_written]
        probe = Message("assistant", PROBE)
        probed = self._wholes([replace(texts[i], turn=probe) for i in spaced])
        around = dict(zip(spaced, probed, strict=True))
        for index, whole in zip(unsure, wholes, strict=True):
            text = texts[index]
            compared[index] = (
                self._written(text, whole)
                if text.is_written
                else _flag_altered(text, whole, around.get(index))
            )
        return compared

    def _wholes(self, texts: Sequence[Texts]) -> list[str | RecordError]:
        """Render them with their responses."""
        assert self._renderer is not None
        return self._renderer.render_batch(
            [text.whole() for text in texts],
            add_generation_prompt=False,
            told=[text.told for text in texts],
        )

    def _written(self, text: Texts, whole: str | RecordError) -> Texts | RecordError:
        """Take the response from the whole rendering."""
        assert self._renderer is not None
        if isinstance(whole, RecordError):
            return whole
        (dropped,) = find_dropped(
            self._renderer, [(text.whole(), text.told)], add_generation_prompt=False
        )
        end = self._renderer.answer_end(text.told)
        response = whole.removeprefix(text.context).removesuffix(end)
        if dropped:
            return dropped
        if len(text.context) + len(response) + len(end) != len(whole):
            return _no_text(text)
        return replace(text, response=response)


def _without_template(text: Texts) -> Texts | RecordError:
    turns = text.whole()
    if text.told.tools or any(turn.tool_calls for turn in turns):
        return RecordError(
            "E_TEMPLATE_TOOLS",
            "the record has tools or calls some, and only a chat template says how they are written",
        )
    if any(turn.reasoning for turn in turns):
        return RecordError(
            "E_TEMPLATE_REASONING",
            "a turn has reasoning apart from its text, and only a chat template says how it is written",
        )
    return text


def _other_end(renderer: Renderer, told: Told) -> RecordError | None:
    try:
        ends = [renderer.answer_end(known).rstrip() for known in (NOTHING, told)]
    except RecordError as error:
        return error
    if ends[0] == ends[1]:
        return None
    return RecordError(
        "E_TEMPLATE_TOOLS",
        "the model's chat template for tools ends an answer otherwise than its plain one (give one for all with "
        "--template FILE)",
    )


def _no_text(text: Texts) -> RecordError:
    if text.turn and text.turn.tool_calls:
        return RecordError(
            "E_TEMPLATE_TOOLS",
            "the chat template opens or ends an answer that calls tools otherwise than a text, so that it has no text "
            "of its own to score",
        )
    return RecordError(
        "E_TEMPLATE_REASONING",
        "the chat template opens or ends an answer with reasoning otherwise than a text, so that it has no text of its "
        "own to score",
    )


def _mapped(turn: Message, put: Callable[[str], str]) -> Message:
    return Message(turn.role, put(turn.content), _mapped_json(turn.given, put))


def _mapped_json(value: Any, put: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON value
    """Replace every text in a JSON value, names of members too."""
    if isinstance(value, str):
        return put(value)
    if isinstance(value, Mapping):
        return {put(name): _mapped_json(member, put) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped_json(member, put) for member in value]
    return value


def for_good(
    items: Sequence[A | RecordError], function: Callable[[Sequence[A]], Sequence[B | RecordError]]
) -> list[B | RecordError]:
    """Apply a function to what is no error, all at once, and leave the errors in their places."""
    results = iter(function([item for item in items if not isinstance(item, RecordError)]))
    return [item if isinstance(item, RecordError) else next(results) for item in items]


def _has_results(text: Texts, written: frozenset[int] | None) -> bool:
    """Whether the results of tools are known to stand in the context; `written`: see `Renderer.written_turns`."""
    results = [place for place, turn in enumerate(text.turns) if turn.role == "tool"]
    return written is not None and written.issuperset(results)


def _flag_altered(
    text: Texts, whole: str | RecordError, probed: str | RecordError | None
) -> Texts | RecordError:
    """Flag a response not in `whole`; `probed`: the same with `PROBE` in its place, for one with outer white space."""
    if isinstance(whole, RecordError):
        return whole
    context = text.context
    start = len(context) if whole.startswith(context) else len(commonprefix([context, whole]))  # noqa: RUF071
    is_kept = text.response in whole[start:]
    if is_kept and isinstance(probed, str) and PROBE in probed:
        # White space that the template writes itself is not the response's.
        before, _, after = probed.partition(PROBE)
        is_kept = whole.endswith(text.response + after)
        if text.response[0].isspace():
            is_kept = whole == before + text.response + after
    return text if is_kept else replace(text, flags=(*text.flags, "template_altered"))

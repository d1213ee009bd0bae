"""Records to ids in Rust, for all that is usual; what is not comes back and goes the way of `TextEncoder`.

In: chunks of lines and the form of their file. Out: a `RecordBatch`: ids, flags and labels as columns, and the lines
that are for Python. A template counts as usual for conversations whose shape compiles to data. Nothing is believed
unseen: of each shape one conversation goes both ways first, and where the ids or flags differ (a doubled
beginning-of-sequence token is one reason) conversations of that shape stay in Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from fam_engine._rust_tokenize import LineChunk, RecordBatch, RecordEncoder
from fam_engine.data.compiled_templates import CompiledTemplate, Shape
from fam_engine.data.records import TOLD, RecordForm, column_of, detect_form, read_record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.data.turns import Message

# Flags by bit, in the order in which `TextEncoder` gives them.
FLAGS = ("special_in_text", "template_altered", "boundary_merged", "first_token_unscored")
_LABELS = {"id": "id", "source": "source", "group": "group", "correct": "correct"}
# Labels nobody asks for here, but of which a wrong type is an error.
_CHECKED = ("answer", "task")
# Beyond this a data set has no usual shapes.
_MAX_SHAPES = 256

Roles = tuple[str, ...]
_Template = tuple[list[str | tuple[int, bool]], list[tuple[int, bool, str, str]]]


class FastRecords:
    """Encodes chunks of lines as a `TextEncoder` does.

    Args:
        encoder: Whose ids are to be had.
        max_length: Longest sequence, tokens; longer records are for Python.
        num_threads: At most so many threads; None: as many as the machine has.
    """

    def __init__(
        self, encoder: TextEncoder, *, max_length: int, num_threads: int | None = None
    ) -> None:
        self._encoder = encoder
        self._num_threads = num_threads
        self._rust = RecordEncoder(
            encoder.tokenizer,
            bos_id=encoder.bos_id,
            end_of_turn_ids=encoder.end_of_turn_ids,
            has_template=encoder.renderer is not None,
            joint=encoder.boundary == "joint",
            parse_special=encoder.parse_special,
            max_length=max_length,
        )
        self._known: set[Roles] = set()

    def learn(self, turns: Sequence[Message]) -> None:
        """Make conversations with these turns before the answer usual, if that can be."""
        roles = tuple([turn.role for turn in turns])
        if roles in self._known or len(self._known) == _MAX_SHAPES:
            return
        self._known.add(roles)
        renderer = self._encoder.renderer
        if renderer is None:
            return
        context = renderer.compile(Shape(roles, True))
        whole = renderer.compile(Shape((*roles, "assistant"), False))
        if context is None or whole is None:
            return
        self._rust.add_shape(list(roles), _as_data(context), _as_data(whole))
        if not self._agrees(roles):
            self._rust.remove_shape(list(roles))

    def encode(self, lines: LineChunk, form: RecordForm, columns: Mapping[str, str]) -> RecordBatch:
        """Encode the lines of a file of a form, its columns renamed as `--map` asks."""
        return self._rust.encode(
            lines,
            form=form.layout,
            columns=_fields(form, columns),
            num_threads=self._num_threads,
        )

    def _agrees(self, roles: Roles) -> bool:
        """Whether a conversation goes both ways alike."""
        messages = [{"role": role, "content": f"One {i}."} for i, role in enumerate(roles)]
        row = {"messages": messages, "response": "Two."}
        form = detect_form(row)
        (expected,) = self._encoder.encode([read_record(row, form, file="", line=1, stem="")])
        batch = self.encode(LineChunk.from_bytes(json.dumps(row).encode()), form, {})
        if not isinstance(expected, Encoded) or len(batch) == 0:
            return False
        context, targets = batch.ids(0)
        flags = flag_names(batch.columns()["flags"][0])
        expected_targets = np.concatenate([expected.response_ids, expected.end_of_turn_ids])
        return (
            np.array_equal(context, expected.context_ids)
            and np.array_equal(targets, expected_targets)
            and flags == expected.flags
        )


def flag_names(bits: int) -> tuple[str, ...]:
    """Give the flags of a record."""
    return tuple(name for bit, name in enumerate(FLAGS) if bits >> bit & 1)


def _fields(form: RecordForm, columns: Mapping[str, str]) -> list[tuple[str, str]]:
    """Give the columns to be read, each with what it holds."""
    fields = {**_LABELS, form.columns[0]: "prompt"}
    if len(form.columns) > 1:
        fields[form.columns[-1]] = "response"
    if form.layout == "instruction":
        fields |= {"input": "input", "history": "history"}
    # In the question/answer form `answer` is the response itself.
    fields |= dict.fromkeys((name for name in _CHECKED if name not in form.columns), "checked")
    # What makes a record one for Python.
    fields |= dict.fromkeys((*TOLD, "response") if form.refuses_response else TOLD, "handed")
    named = ((column_of(name, columns), kind) for name, kind in fields.items())
    return [(column, kind) for column, kind in named if column is not None]


def _as_data(template: CompiledTemplate) -> _Template:
    pieces: list[str | tuple[int, bool]] = [
        piece if isinstance(piece, str) else (piece.turn, piece.trimmed)
        for piece in template.pieces
    ]
    guards = [
        (guard.content.turn, guard.content.trimmed, str(guard.test), guard.text)
        for guard in template.guards
    ]
    return pieces, guards

"""Text to ids, by the one rule that scoring, training and generating share.

In: records. Out: `Encoded` (context, response and end-of-turn ids) or a `RecordError` each. The context is what the
model would see when asked (template with its generation prompt, or the prompt verbatim); the response is encoded
alone, as something that continues a text. Encoding both jointly and cutting was rejected as the default: the cut then
depends on the tokenizer's merges across it (0-100 % of records, by separator), and siblings would not share their
prompt's ids. `boundary="joint"` still does it, to reproduce published figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Tokenizer, TokenizerError
from fam_engine.data.records import Message, Record
from fam_engine.data.templates import Renderer, Template, find_template
from fam_engine.errors import ModelRefusedError, RecordError

Ids = npt.NDArray[np.int32]
Boundary = Literal["separate", "joint"]

# Stands for a response when a template is asked what it adds around one.
_PROBE = "fam-engine-probe-response"
# Private-use characters that stand in, while rendering, for special tokens users wrote as text.
_FIRST_STAND_IN = 0xF0000


@dataclass(frozen=True)
class Encoded:
    """A record as token ids.

    Attributes:
        context_ids: int32, at least one: what the response is conditioned on.
        response_ids: int32, the tokens to be scored.
        end_of_turn_ids: int32, what ends the turn, scored apart.
        context_text: The context as text, for showing.
        flags: What is unusual about it.
    """

    context_ids: Ids
    response_ids: Ids
    end_of_turn_ids: Ids
    context_text: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class _Texts:
    """A record's texts around the boundary, user-written special tokens replaced by stand-ins."""

    context: str
    response: str
    flags: tuple[str, ...]


class TextEncoder:
    """Encodes records for one model.

    Args:
        folder: The model's folder; it holds `tokenizer.json` and usually `tokenizer_config.json`.
        template: `auto`, `none`, or a template file.
        boundary: `separate`, or `joint` (context and response encoded together, cut at the
            context's own length).
        parse_special: Whether special tokens written in users' texts count as such.

    Raises:
        ModelRefusedError: Tokenizer or template cannot be used.
        UsageError: The template file does not read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        template: str = "auto",
        boundary: Boundary = "separate",
        parse_special: bool = False,
    ) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.boundary = boundary
        self.parse_special = parse_special
        config = _read_config(folder / "tokenizer_config.json")
        self._special = dict(self.tokenizer.special_tokens())
        self._special_pattern = _alternation(self._special)
        self._stand_ins = {n: chr(_FIRST_STAND_IN + i) for i, n in enumerate(self._special)}
        self._stood_for = {char: name for name, char in self._stand_ins.items()}
        self._stand_in_pattern = _alternation(self._stood_for)
        self.bos_id = self._bos(config)
        self.template: Template | None = find_template(folder, template, _constants(config))
        self._renderer = Renderer(self.template) if self.template else None
        self.end_of_turn_ids = self._find_end_of_turn(folder, config)
        self._section_continues = self._probe_sections()

    def close(self) -> None:
        """Stop the rendering child, if there is one."""
        if self._renderer:
            self._renderer.close()

    @property
    def renderer(self) -> Renderer | None:
        """What renders contexts; None: prompts are taken verbatim."""
        return self._renderer

    def encode(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """Encode records.

        Returns:
            One result a record, in order.
        """
        try:
            return self._encode(records)
        except TokenizerError as error:
            # A text the tokenizer cannot take fails its whole batch; find it, spare the others.
            if len(records) == 1:
                return [RecordError("E_TOKENIZE", f"the tokenizer failed: {error}")]
            return [result for record in records for result in self.encode([record])]

    def _encode(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        texts = [self._texts(record) for record in records]
        good = [text for text in texts if isinstance(text, _Texts)]
        encoded = iter(self._encode_texts(good))
        return [next(encoded) if isinstance(text, _Texts) else text for text in texts]

    def encode_context(self, messages: Sequence[Message], verbatim: str) -> Ids:
        """Encode a context that came from no record, by the same rule.

        Raises:
            RecordError: The template would not render it.
        """
        return self._contexts([self._context_text(messages, verbatim)])[0]

    def context_alone(self, response_ids: Ids) -> tuple[Ids, Ids]:
        """Split a response for scoring it without its prompt.

        Returns:
            (context, targets): the beginning-of-sequence token and the whole response, or, where
            the tokenizer has none, the response's first token and the rest.
        """
        if self.bos_id is not None:
            return np.array([self.bos_id], np.int32), response_ids
        return response_ids[:1], response_ids[1:]

    # -- texts ---------------------------------------------------------------------------------

    def _texts(self, record: Record) -> _Texts | RecordError:
        flags = []
        written = (record.verbatim, record.response, *(m.content for m in record.context))
        if any(map(self._has_stand_in, written)):
            # Restoring would turn these characters into special tokens' names.
            return RecordError("E_RECORD_TEXT", "the text holds reserved private-use characters")
        if self._special_pattern and any(map(self._special_pattern.search, written)):
            flags.append("special_in_text")
        try:
            context = self._context_text(record.context, record.verbatim)
            if self._renderer and self._is_altered(record, context):
                flags.append("template_altered")
        except RecordError as error:
            return error
        return _Texts(context, self._stand_in(record.response), tuple(flags))

    def _context_text(self, messages: Sequence[Message], verbatim: str) -> str:
        if self._renderer is None:
            return self._stand_in(verbatim)
        marked = [Message(m.role, self._stand_in(m.content)) for m in messages]
        return self._renderer.render(marked, add_generation_prompt=True)

    def _is_altered(self, record: Record, context: str) -> bool:
        """Whether the template does not keep the response verbatim after the context."""
        assert self._renderer is not None
        response = self._stand_in(record.response)
        turns = [Message(m.role, self._stand_in(m.content)) for m in record.context]
        turns.append(Message("assistant", response))
        whole = self._renderer.render(turns, add_generation_prompt=False)
        start = len(context) if whole.startswith(context) else len(commonprefix([context, whole]))  # noqa: RUF071
        return response not in whole[start:]

    def _stand_in(self, text: str) -> str:
        """Replace user-written special tokens, so that rendering cannot make them real."""
        if self._special_pattern is None or self.parse_special:
            return text
        return self._special_pattern.sub(lambda match: self._stand_ins[match.group()], text)

    def _restore(self, text: str) -> str:
        if self._stand_in_pattern is None:
            return text
        return self._stand_in_pattern.sub(lambda match: self._stood_for[match.group()], text)

    def _has_stand_in(self, text: str) -> bool:
        return self._stand_in_pattern is not None and bool(self._stand_in_pattern.search(text))

    # -- ids -----------------------------------------------------------------------------------

    def _encode_texts(self, texts: Sequence[_Texts]) -> list[Encoded]:
        contexts = self._contexts([text.context for text in texts])
        responses = self._ids(
            [text.response for text in texts], parse=self.parse_special, continuation=True
        )
        joint = self._contexts([text.context + text.response for text in texts])
        encoded = []
        for text, context, response, both in zip(texts, contexts, responses, joint, strict=True):
            merged = not np.array_equal(both, np.concatenate([context, response]))
            flags = (*text.flags, "boundary_merged") if merged else text.flags
            if self.boundary == "joint":
                context, response = both[: len(context)], both[len(context) :]
            encoded.append(self._finish(context, response, text.context, flags))
        return encoded

    def _finish(self, context: Ids, response: Ids, text: str, flags: tuple[str, ...]) -> Encoded:
        if len(context) == 0 and self.bos_id is not None:
            context = np.array([self.bos_id], np.int32)
        elif len(context) == 0:
            # Nothing stands before the first token, so it has no probability to speak of.
            context, response = response[:1], response[1:]
            flags = (*flags, "first_token_unscored")
        return Encoded(context, response, self.end_of_turn_ids, self._restore(text), flags)

    def _contexts(self, texts: Sequence[str]) -> list[Ids]:
        """Encode contexts: a template brings its own special tokens, a plain prompt gets BOS."""
        if self.template is not None:
            return self._ids(texts, parse=True)
        plain = self._ids(texts, parse=self.parse_special)
        if self.bos_id is None:
            return plain
        bos = np.array([self.bos_id], np.int32)
        return [
            ids if len(ids) and ids[0] == self.bos_id else np.concatenate([bos, ids])
            for ids in plain
        ]

    def _ids(self, texts: Sequence[str], *, parse: bool, continuation: bool = False) -> list[Ids]:
        """Encode texts in one batch; those with stand-ins section by section."""
        plain = ["" if self._has_stand_in(text) else text for text in texts]
        ids, offsets = self.tokenizer.encode_batch(
            plain, parse_special=parse, continuation=continuation
        )
        split = [ids[a:b] for a, b in pairwise(offsets.tolist())]
        for index, text in enumerate(texts):
            if self._has_stand_in(text):
                split[index] = self._sections(text, parse=parse, continuation=continuation)
        return split

    def _sections(self, text: str, *, parse: bool, continuation: bool) -> Ids:
        """Encode a text in which some special tokens are real and others only look like it."""
        pattern = self._special_pattern if parse else None
        pieces: list[Ids] = []
        start = 0
        for match in pattern.finditer(text) if pattern else ():
            pieces.append(self._section(text[start : match.start()], continuation=continuation))
            pieces.append(np.array([self._special[match.group()]], np.int32))
            start, continuation = match.end(), self._section_continues
        pieces.append(self._section(text[start:], continuation=continuation))
        return np.concatenate(pieces)

    def _section(self, text: str, *, continuation: bool) -> Ids:
        ids, _ = self.tokenizer.encode_batch(
            [self._restore(text)], parse_special=False, continuation=continuation
        )
        return ids

    # -- what the model's files say --------------------------------------------------------------

    def _bos(self, config: dict[str, Any]) -> int | None:
        """Find the token a plain prompt starts with, if this tokenizer adds one."""
        name = _token_text(config.get("bos_token"))
        bos = self.tokenizer.token_to_id(name) if name else None
        wanted = config.get("add_bos_token")
        if wanted is None and bos is not None:
            ids, _ = self.tokenizer.encode_batch(["a"], add_special_tokens=True)
            wanted = len(ids) > 0 and int(ids[0]) == bos
        return bos if wanted else None

    def _find_end_of_turn(self, folder: Path, config: dict[str, Any]) -> Ids:
        """Find what ends an assistant's turn: the template's next special token, else EOS."""
        if self._renderer is not None:
            ids = self._template_end(self._renderer)
            if len(ids):
                return ids
        name = _token_text(config.get("eos_token"))
        eos = self.tokenizer.token_to_id(name) if name else _config_eos(folder)
        return np.array([] if eos is None else [eos], np.int32)

    def _template_end(self, renderer: Renderer) -> Ids:
        turns = (Message("user", "a"), Message("assistant", _PROBE))
        try:
            _, _, after = renderer.render(turns, add_generation_prompt=False).partition(_PROBE)
        except RecordError as error:
            raise ModelRefusedError(
                f"{error.reason} on a plain question and answer",
                code="E_TEMPLATE",
                hint="give one with --template FILE, or --template none",
            ) from None
        match = self._special_pattern.search(after) if self._special_pattern else None
        # A newline after the special token is layout between turns; generation stops before it.
        text = after[: match.end()] if match else after.rstrip()
        ids, _ = self.tokenizer.encode_batch([text], parse_special=True, continuation=True)
        return ids

    def _probe_sections(self) -> bool:
        """Whether text after a special token is encoded as a continuation (no dummy blank)."""
        if not self._special:
            return True
        name = next(iter(self._special))
        (both, _), (alone, _) = (
            self.tokenizer.encode_batch([text], parse_special=True) for text in (f"{name}a", "a")
        )
        return not np.array_equal(both[1:], alone)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a model folder's tokenizer.

    Raises:
        ModelRefusedError: It is missing or does not load.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelRefusedError(
            "does not exist, expected the tokenizer in Hugging Face's format",
            code="E_TOKENIZER",
            where=str(file),
            hint="save it with transformers' AutoTokenizer.save_pretrained",
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
        # Some tokenizers cannot encode a text that continues another; better refused now than late.
        tokenizer.encode_batch(["a"], continuation=True)
        return tokenizer
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelRefusedError(
            f"does not load: {error}", code="E_TOKENIZER", where=str(file)
        ) from None


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ModelRefusedError("is not a JSON object", code="E_TOKENIZER_CONFIG", where=str(file))
    return config


def _constants(config: dict[str, Any]) -> dict[str, str]:
    """Give the special tokens templates may name, `bos_token` and its like."""
    texts = {name: _token_text(value) for name, value in config.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text}


def _token_text(value: object) -> str | None:
    """Read a token written as text or as an added-token object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _config_eos(folder: Path) -> int | None:
    value = _read_config(folder / "config.json").get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def _alternation(names: Iterable[str]) -> re.Pattern[str] | None:
    """Compile a pattern that finds any of the names, the longest first; None if there are none."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

"""Text to ids, by the one rule that scoring, training and generating share.

In: records. Out: `Encoded` (context, response and end-of-turn ids) or a `RecordError` each. The context is what the
model would see when asked (template with its generation prompt, or the prompt verbatim); the response is encoded
alone, as something that continues a text. Encoding both jointly and cutting was rejected as the default: the cut then
depends on the tokenizer's merges across it (0-100 % of records, by separator), and siblings would not share their
prompt's ids. `boundary="joint"` still does it, to reproduce published figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Tokenizer, TokenizerError
from fam_engine.data.child_encoding import TextsEncoder
from fam_engine.data.other_readers import REMEDY, read_otherwise, starts_anew_after_special
from fam_engine.data.record_texts import TextMaker, Texts, for_good
from fam_engine.data.records import Record
from fam_engine.data.rendering import Renderer
from fam_engine.data.stand_ins import StandIns
from fam_engine.data.templates import Template, find_template, with_kwargs
from fam_engine.data.tokenizer_files import (
    config_eos,
    num_rows,
    read_tokenizer_config,
    template_constants,
)
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.data.turns import NOTHING, Message, Told
from fam_engine.errors import ModelRefusedError, RecordError

Ids = npt.NDArray[np.int32]
Boundary = Literal["separate", "joint"]


@dataclass(frozen=True)
class Encoded:
    """A record as token ids.

    Attributes:
        context_ids: int32, at least one: what the response is conditioned on.
        response_ids: int32, the tokens to be scored.
        end_of_turn_ids: int32, what ends the turn, scored apart.
        context_text: The context as text, for showing.
        response_text: The response as text; of an answer that calls tools what the template writes.
        flags: What is unusual about it.
        prompt_ids: int32, the context as it is encoded alone and before it is cut: what names the
            question. Usually the very array `context_ids`.
    """

    context_ids: Ids
    response_ids: Ids
    end_of_turn_ids: Ids
    context_text: str
    response_text: str
    flags: tuple[str, ...]
    prompt_ids: Ids


class TextEncoder:
    """Encodes records for one model.

    Args:
        folder: The model's folder; it holds `tokenizer.json` and usually `tokenizer_config.json`.
        template: `auto`, `none`, or a template file.
        chat_template_kwargs: What else the template is told by name, JSON values.
        boundary: `separate`, or `joint` (context and response encoded together, cut at the
            context's own length).
        parse_special: Whether special tokens written in users' texts count as such.

    Attributes:
        read_otherwise: A sentence for the user where transformers 5 gives the template's prompts other ids.

    Raises:
        ModelRefusedError: Tokenizer or template cannot be used.
        UsageError: The template file does not read, or the template does not read what it is told.
    """

    def __init__(
        self,
        folder: Path,
        *,
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        boundary: Boundary = "separate",
        parse_special: bool = False,
    ) -> None:
        self.tokenizer = load_tokenizer(folder)
        _check_size(self.tokenizer, folder)
        self.boundary = boundary
        self.parse_special = parse_special
        config = read_tokenizer_config(folder)
        names = template_constants(config)
        self._special = dict(self.tokenizer.special_tokens())
        self._stand_ins = StandIns(self._special)
        self.bos_id = self._bos(names, config.get("add_bos_token"))
        found = find_template(folder, template, names)
        self.template: Template | None = with_kwargs(found, chat_template_kwargs or {})
        self._renderer = Renderer(self.template) if self.template else None
        self._texts = TextMaker(self._renderer, self._stand_ins, parse_special=parse_special)
        self._texts_encoder = TextsEncoder(self.tokenizer, folder / "tokenizer.json")
        try:
            self.end_of_turn_ids = self._find_end_of_turn(folder, names)
            self._section_continues = not starts_anew_after_special(self.tokenizer)
            self._doubled_bos_id = self._probe_bos(names)
            otherwise = read_otherwise(self.tokenizer, folder) if found else None
            self.read_otherwise = f"{otherwise} ({REMEDY})" if otherwise else None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the children, if there are any."""
        self._texts_encoder.close()
        if self._renderer:
            self._renderer.close()

    @property
    def renderer(self) -> Renderer | None:
        """What renders contexts; None: prompts are taken verbatim."""
        return self._renderer

    @property
    def is_in_child(self) -> bool:
        """Whether only a child may encode users' texts with this tokenizer."""
        return self._texts_encoder.is_in_child

    def encode_batch(
        self, texts: Sequence[str], **options: bool
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Encode users' texts as `Tokenizer.encode_batch` does; a text cannot end the process.

        Raises:
            TokenizerError: A text cannot be encoded.
        """
        return self._texts_encoder.encode_batch(texts, **options)

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
        return for_good(self._texts.make(records), self._encode_texts)

    def encode_context(
        self, messages: Sequence[Message], verbatim: str, told: Told = NOTHING
    ) -> Ids:
        """Encode a context that came from no record and has no tools, by the same rule; `told`: to the template.

        Raises:
            RecordError: The template would not render it.
        """
        texts = self._texts.marked(Texts(tuple(messages), verbatim, "", (), told))
        (text,) = self._texts.rendered([texts])
        if isinstance(text, RecordError):
            raise text
        return self._contexts([text.context])[0]

    def context_alone(self, response_ids: Ids) -> tuple[Ids, Ids]:
        """Split a response for scoring it without its prompt.

        Returns:
            (context, targets): the beginning-of-sequence token and the whole response, or, where
            the tokenizer has none, the response's first token and the rest.
        """
        if self.bos_id is not None:
            return np.array([self.bos_id], np.int32), response_ids
        return response_ids[:1], response_ids[1:]

    # -- ids -----------------------------------------------------------------------------------

    def _encode_texts(self, texts: Sequence[Texts]) -> list[Encoded | RecordError]:
        contexts = self._contexts([text.context for text in texts])
        responses = self._responses(texts)
        joint = self._contexts([text.context + text.response for text in texts])
        encoded: list[Encoded | RecordError] = []
        for text, context, response, both in zip(texts, contexts, responses, joint, strict=True):
            merged = not np.array_equal(both, np.concatenate([context, response]))
            flags = (*text.flags, "boundary_merged") if merged else text.flags
            try:
                one = self._finish(context, response, text, flags)
                if self.boundary == "joint":
                    cut = len(context)
                    together = self._finish(both[:cut], both[cut:], text, flags)
                    one = replace(together, prompt_ids=one.prompt_ids)
            except RecordError as error:
                encoded.append(error)
            else:
                encoded.append(one)
        return encoded

    def _responses(self, texts: Sequence[Texts]) -> list[Ids]:
        """Encode the responses; those a template writes bring its special tokens."""
        plain = ["" if text.is_written else text.response for text in texts]
        ids = self._ids(plain, parse=self.parse_special, continuation=True)
        for index, text in enumerate(texts):
            if text.is_written:
                (ids[index],) = self._ids([text.response], parse=True, continuation=True)
        return ids

    def _finish(self, context: Ids, response: Ids, text: Texts, flags: tuple[str, ...]) -> Encoded:
        if len(context) == 0 and self.bos_id is not None:
            context = np.array([self.bos_id], np.int32)
        elif len(context) == 0:
            # Nothing stands before the first token, so it has no probability to speak of.
            context, response = response[:1], response[1:]
            flags = (*flags, "first_token_unscored")
        if len(context) == 0:
            raise RecordError(
                "E_EMPTY_TOKENS",
                "the tokenizer makes no token of the prompt and the response, and the model has no BOS to begin with",
            )
        return Encoded(
            context,
            response,
            self.end_of_turn_ids,
            self._stand_ins.restore(text.context),
            self._stand_ins.restore(text.response),
            flags,
            prompt_ids=context,
        )

    def _contexts(self, texts: Sequence[str]) -> list[Ids]:
        """Encode contexts: a template brings its own special tokens, a plain prompt gets BOS."""
        if self.template is not None:
            ids = self._ids(texts, parse=True)
            doubled = self._doubled_bos_id
            return ids if doubled is None else [_without_repeats(one, doubled) for one in ids]
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
        plain = ["" if self._stand_ins.are_in(text) else text for text in texts]
        ids, offsets = self.encode_batch(plain, parse_special=parse, continuation=continuation)
        split = [ids[a:b] for a, b in pairwise(offsets.tolist())]
        for index, text in enumerate(texts):
            if self._stand_ins.are_in(text):
                split[index] = self._sections(text, parse=parse, continuation=continuation)
        return split

    def _sections(self, text: str, *, parse: bool, continuation: bool) -> Ids:
        """Encode a text in which some special tokens are real and others only look like it."""
        pieces: list[Ids] = []
        start = 0
        for match in self._stand_ins.specials(text) if parse else ():
            pieces.append(self._section(text[start : match.start()], continuation=continuation))
            pieces.append(np.array([self._special[match.group()]], np.int32))
            start, continuation = match.end(), self._section_continues
        pieces.append(self._section(text[start:], continuation=continuation))
        return np.concatenate(pieces)

    def _section(self, text: str, *, continuation: bool) -> Ids:
        ids, _ = self.encode_batch(
            [self._stand_ins.restore(text)], parse_special=False, continuation=continuation
        )
        return ids

    # -- what the model's files say --------------------------------------------------------------

    def _bos(self, names: Mapping[str, str], is_wanted: object) -> int | None:
        """Find the token a plain prompt starts with, if this tokenizer adds one.

        Args:
            names: Of special tokens, as the files beside `tokenizer.json` have them.
            is_wanted: What they say of adding it; None: nothing, so `tokenizer.json` tells.
        """
        if is_wanted is not None and not is_wanted:
            return None
        named = self._named_id(names, "bos_token")
        return named if is_wanted and named is not None else self._first_added(named)

    def _first_added(self, named: int | None) -> int | None:
        """Give the token that `tokenizer.json` puts before a text: the named one, or one alone."""
        (full, _), (bare, _) = (
            self.tokenizer.encode_batch(["a"], add_special_tokens=adds) for adds in (True, False)
        )
        if len(full) == 0:
            return None
        # What stands before nothing may as well stand behind it, as the EOS of T5 does.
        is_before = len(bare) > 0 and np.array_equal(full[1 : 1 + len(bare)], bare)
        return int(full[0]) if full[0] == named or is_before else None

    def _named_id(self, names: Mapping[str, str], name: str) -> int | None:
        return self.tokenizer.token_to_id(names[name]) if name in names else None

    def _probe_bos(self, names: Mapping[str, str]) -> int | None:
        """Find the beginning-of-sequence token, if the template writes it more than once."""
        named = self._named_id(names, "bos_token")
        bos = self.bos_id if named is None else named
        if self._renderer is None or bos is None:
            return None
        try:
            text = self._renderer.render((Message("user", "a"),), add_generation_prompt=True)
        except RecordError as error:
            raise self._refused(error) from None
        (ids,) = self._ids([text], parse=True)
        return bos if ids[:2].tolist() == [bos, bos] else None

    def _find_end_of_turn(self, folder: Path, names: Mapping[str, str]) -> Ids:
        """Find what ends an assistant's turn: the template's next special token, else EOS."""
        if self._renderer is not None:
            ids = self._template_end()
            if len(ids):
                return ids
        eos = self._named_id(names, "eos_token") if "eos_token" in names else config_eos(folder)
        return np.array([] if eos is None else [eos], np.int32)

    def _template_end(self) -> Ids:
        assert self._renderer is not None
        try:
            after = self._renderer.answer_end()
        except RecordError as error:
            raise self._refused(error) from None
        match = self._stand_ins.first_special(after)
        # A newline after the special token is layout between turns; generation stops before it.
        text = after[: match.end()] if match else after.rstrip()
        ids, _ = self.tokenizer.encode_batch([text], parse_special=True, continuation=True)
        return ids

    def _refused(self, error: RecordError) -> ModelRefusedError:
        """Say that a template does not render what every template is to take."""
        assert self.template is not None
        return ModelRefusedError(
            f"{error.reason} on a plain question",
            code="E_TEMPLATE",
            where=self.template.where,
            hint="give one with --template FILE, or --template none",
        )


def _check_size(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer that has more tokens for texts than the model has rows.

    Special tokens do not count: published models have some that they have no row for, and no text gives them.
    """
    rows, count = num_rows(folder), tokenizer.vocab_size - len(tokenizer.special_tokens())
    if rows is not None and count > rows:
        raise ModelRefusedError(
            f"has {count} tokens, the model has rows for {rows}: it is another model's",
            code="E_TOKENIZER",
            where=str(folder / "tokenizer.json"),
        )


def _without_repeats(ids: Ids, first: int) -> Ids:
    """Leave one of the tokens a context starts with, if it starts with several of that one."""
    num = int((np.cumprod(ids == first)).sum())
    return ids[max(num - 1, 0) :]

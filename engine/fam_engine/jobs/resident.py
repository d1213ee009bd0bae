"""`fam_engine.ResidentModel`: a model loaded once that scores and continues token ids, for programs that embed one.

In: texts, contexts and targets as ids. Out: ids, facts of tokens, completions. `Scorer` and `Generator` run whole jobs
over records; this is what lies under servers and other tools' plug-ins, which bring their own records and their own
rules of how texts become ids. One thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fam_engine.arguments import check_whole_number, checked_token_ids, is_whole_number
from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.packing import Int32
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.tokenizer_files import read_tokenizer_config, template_constants
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.beginning import longest_sequence
from fam_engine.jobs.scoring.continuations import Continuation, Pair, continuations
from fam_engine.jobs.sources import check_adapter, tokens_per_batch
from fam_engine.model.folders import resolve_model
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.loading import load_model


class ResidentModel:
    r"""A model that stays loaded.

    Args:
        model: Model folder, `embedded`, or with `download` a hub id.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_length: Longest sequence, tokens, of what is scored and of what is written; None: the model's own limit.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.
        download: Whether a hub id may be fetched.

    Attributes:
        decoder: The model.
        encoder: Its tokenizer and template.
        max_length: Longest sequence, tokens.
        revision: Commit it was fetched at, if it was.
        bos_token_id: Beginning of a sequence, None if the tokenizer neither names nor adds one.
        eos_token_id: End of a sequence, None if the tokenizer names none.

    Raises:
        ModelRefusedError: The model or the adapter cannot be used.
        DeviceError: The device is not there.
        UsageError: `max_length` or `max_tokens_per_batch` is no whole number above 0, or `max_length`
            beyond the model.

    Example:
        >>> with ResidentModel("embedded") as model:
        ...     context, target = model.encode(["What is 2 + 3?\n", "5"])
        ...     [result] = model.continuations([(context, target[1:])])
        ...     [text] = model.generate([Request(context, seed=0)], Sampling(max_new_tokens=4))
        ...     len(result.facts), len(text.token_ids) <= 4
        (1, True)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        max_tokens_per_batch: int | None = None,
        download: bool = False,
    ) -> None:
        for name, value in (
            ("max_length", max_length),
            ("max_tokens_per_batch", max_tokens_per_batch),
        ):
            if value is not None:
                check_whole_number(name, value, least=1)
        folder, self.revision = resolve_model(model, download=download)
        check_adapter(None if adapter is None else Path(adapter))
        self.decoder = load_model(
            folder,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
        )
        config = self.decoder.config
        self.max_length = longest_sequence(config.max_position_embeddings, max_length)
        self.encoder = TextEncoder(
            folder, template=template, chat_template_kwargs=chat_template_kwargs
        )
        names = template_constants(read_tokenizer_config(folder))
        self.eos_token_id = self._token_id(names.get("eos_token"))
        self._bos_text = names.get("bos_token")
        self.bos_token_id = self._token_id(self._bos_text)
        if self.bos_token_id is None and self.encoder.bos_id is not None:
            self.bos_token_id = self.encoder.bos_id
            self._bos_text = self.encoder.tokenizer.id_to_token(self.encoder.bos_id)
        self._budget = tokens_per_batch(max_tokens_per_batch, self.decoder)

    def __enter__(self) -> ResidentModel:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the template's child process."""
        self.close()

    def close(self) -> None:
        """Let go of the template's child process."""
        self.encoder.close()

    def _token_id(self, token: str | None) -> int | None:
        return None if token is None else self.encoder.tokenizer.token_to_id(token)

    def encode(self, texts: Sequence[str], *, add_bos: bool | None = None) -> list[Int32]:
        """Encode texts as they are: no template, special tokens in them count as such.

        Args:
            texts: The texts; a lone surrogate in one is a UnicodeEncodeError.
            add_bos: Whether they begin with the beginning-of-sequence token, never twice; None: as
                transformers does it, which is to say by what `tokenizer.json` puts around a text.

        Raises:
            TokenizerError: A text cannot be encoded.
        """
        split = self._encoded(texts, add_special_tokens=add_bos is None)
        if add_bos is None:
            for index, text in enumerate(texts):
                if self._bos_text and text.startswith(self._bos_text):
                    split[index] = self._encoded([text], add_special_tokens=False)[0]
            return split
        bos = self.bos_token_id
        if bos is None or not add_bos:
            return split
        first = np.array([bos], np.int32)
        return [one if len(one) and one[0] == bos else np.append(first, one) for one in split]

    def _encoded(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Int32]:
        ids, offsets = self.encoder.encode_batch(texts, add_special_tokens=add_special_tokens)
        return [ids[a:b] for a, b in pairwise(offsets.tolist())]

    def continuations(self, pairs: Sequence[Pair], *, num_top: int = 0) -> Iterator[Continuation]:
        """Compute continuations.

        Args:
            pairs: Context ids, at least one, and target ids; those with the same context share its
                computation.
            num_top: How many of the most probable tokens to give in each place.

        Returns:
            A result a pair, those of a batch together, the longest first.

        Raises:
            UsageError: Ids that are none or not the model's; more tokens in a place than it has.
            InputError: A pair is longer than `max_length`; its last target is predicted, never fed.
        """
        most = self.decoder.config.vocab_size
        if not is_whole_number(num_top, least=0) or num_top > most:
            message = f"num_top is {num_top!r}, expected a whole number from 0 to {most}"
            raise UsageError(message, code="E_CONFIG_VALUE")
        checked = [self._checked_pair(index, *pair) for index, pair in enumerate(pairs)]
        return continuations(self.decoder, checked, max_tokens=self._budget, num_top=num_top)

    def _checked_pair(self, index: int, context: object, targets: object) -> Pair:
        name, size = f"pair {index}", self.decoder.config.vocab_size
        before = checked_token_ids(f"the context of {name}", context, vocab_size=size)
        after = checked_token_ids(
            f"the target of {name}", targets, vocab_size=size, can_be_empty=True
        )
        length = len(before) + len(after) - 1
        if length > self.max_length:
            message = f"takes {length} tokens with its context, expected at most {self.max_length}"
            raise InputError(message, code="E_TOO_LONG", where=name)
        return before, after

    def generate(
        self,
        requests: Iterable[Request],
        sampling: Sampling,
        *,
        on_step: Callable[[int], None] = lambda _: None,
        is_wanted: Callable[[int], bool] = lambda _: True,
    ) -> Iterator[Completion]:
        """Continue contexts.

        They are ids and went through no template here, so a text ends at the model's end tokens and the
        sampling's stop strings, not at ordinary text that the template ends a turn with; and at `max_length`,
        its context counted in.

        Args:
            requests: Read as there is room for more, so longest first is fastest.
            sampling: How tokens are chosen.
            on_step: Called after each step with the number of tokens made; may raise, which ends
                the run.
            is_wanted: Whether a request, by its number, still is. Asked between steps; one that is not is
                continued no further, and what it lacks never comes.

        Yields:
            Completions, in the order they finish.

        Raises:
            UsageError: Ids that are not the model's.
            InputError: A context is longer than `max_length`.
        """
        # Not by a generator, which would be over once its source has nothing for the moment.
        checked = map(self._checked_request, requests)
        return self.generator.generate(checked, sampling, on_step=on_step, is_wanted=is_wanted)

    def _checked_request(self, request: Request) -> Request:
        size = self.decoder.config.vocab_size
        checked_token_ids("context_ids", request.context_ids, vocab_size=size)
        length = len(request.context_ids)
        if length > self.max_length:
            message = f"a context of {length} tokens, expected at most {self.max_length}"
            raise InputError(message, code="E_TOO_LONG")
        return request

    @cached_property
    def generator(self) -> Generator:
        """What generates; made when first needed, for it may keep the weights once more."""
        return Generator(
            self.decoder, self.encoder, stops_at_turns=False, max_length=self.max_length
        )

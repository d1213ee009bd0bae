"""lm-evaluation-harness: our model as `--model fam-engine` (entry-point group `lm_eval.models`).

In: lm-eval's requests. Out: log-likelihoods and texts. What is measured is what lm-eval's own Hugging Face model
measures: texts become ids by its rules (context and continuation encoded together and cut at the context's length,
trailing blanks of a context moved to its continuation, special tokens in texts count, BOS as the tokenizer does it and
never twice), contexts that are too long lose their beginning. So the figures agree; what differs is the work: choices
of one question share its prompt, and batches are planned by tokens, so lm-eval's batch size means nothing here.

Contract read from lm-eval 0.4.13, `lm_eval/api/model.py` and `lm_eval/models/huggingface.py`. Not done as there: a
continuation without tokens of its own (the last token of the context swallowed it) is refused before anything is
computed, where lm-eval stops in the middle; a template that refuses the system turn is not tried again without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from fam_engine.config import ComputeDtype, Precision, nearest
from fam_engine.data.packing import Int32
from fam_engine.data.turns import Message
from fam_engine.errors import InputError, RecordError, UsageError
from fam_engine.jobs.resident import ResidentModel
from fam_engine.jobs.scoring.continuations import Continuation
from fam_engine.model.generation.requests import Request, Sampling
from fam_engine.version import __version__

# What lm-eval's own models write at most where a task does not say.
_MAX_GEN_TOKENS: Final = 256
# Marks where the turn to be continued ends; the blank tells whether the template trims turns.
_OPEN_END: Final = "fam-engine-open-end "
# Names of its Hugging Face model, and ours.
_HUGGING_FACE_NAMES: Final = {
    "dtype": "precision",
    "load_in_4bit": "precision",
    "tokenizer": "pretrained",
    "revision": "download",
    "chat_template": "template",
}
_OPTIONS: Final = (
    "pretrained", "peft", "precision", "compute_dtype", "template", "chat_template_args", "enable_thinking",
    "max_length", "add_bos_token", "prefix_token_id", "max_tokens_per_batch", "download",
)  # fmt: skip
# Not the texts "True" and "False", of which Python takes either for yes.
_YES_OR_NO: Final = (True, False, None)

Answer = tuple[float, bool]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A log-likelihood asked for.

    Attributes:
        texts: Context and continuation, or None for a window of a longer text.
        context: Ids, at least one.
        continuation: Ids, at least one.
    """

    texts: tuple[str, str] | None
    context: Int32
    continuation: Int32


class FamEngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval is an extra
    """A fam-engine model for lm-eval.

    Args:
        pretrained: Model folder, `embedded`, or with `download` a hub id.
        peft: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`; `cuda:0`, which lm-eval gives where its user gave none, is
            `auto`.
        template: Chat template: `auto`, `none` or a file; it counts with `--apply_chat_template`.
        chat_template_args: What else the template is told.
        enable_thinking: Of that, what many templates read; None: not told.
        max_length: Longest sequence, tokens; None: the model's own limit.
        add_bos_token: Whether texts begin with BOS; None: as the tokenizer does it.
        prefix_token_id: What a text without context is conditioned on; None: BOS, else EOS.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.
        download: Whether a hub id may be fetched.
        batch_size: Of no effect, for lm-eval always gives one.
        max_batch_size: Likewise.
        others: Refused, with the nearest name there is.

    Raises:
        FamEngineError: See `ResidentModel`; a name or a value that is none of these.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        peft: str | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: str = "auto",
        template: str = "auto",
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_tokens_per_batch: int | None = None,
        download: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        for name in others:
            ours = _HUGGING_FACE_NAMES.get(name)
            close = f"; its name here is `{ours}`" if ours else nearest(name, _OPTIONS)
            raise UsageError(f"model argument `{name}` is unknown{close}", code="E_LM_EVAL_ARGS")
        if pretrained is None:  # lm-eval's own word for it would be a TypeError
            message = "model argument `pretrained` is missing, a model folder or `embedded`"
            hint = "give --model_args pretrained=MODEL"
            raise UsageError(message, code="E_LM_EVAL_ARGS", hint=hint)
        self.pretrained = str(pretrained)
        self._model = ResidentModel(
            pretrained,
            adapter=peft,
            precision=_one_of("precision", precision, ("nf4", "bf16", "fp32")),
            compute_dtype=_one_of("compute_dtype", compute_dtype, ("auto", "bf16", "fp32")),
            device=_one_of("device", _device(device), ("auto", "cpu", "cuda")),
            template=template,
            chat_template_kwargs=_template_kwargs(chat_template_args, enable_thinking),
            max_length=max_length,
            max_tokens_per_batch=max_tokens_per_batch,
            download=_one_of("download", download, (True, False)),
        )
        self._device = self._model.decoder.device
        self._add_bos = _one_of("add_bos_token", add_bos_token, _YES_OR_NO)
        self._prefix_token_id = self._checked_id(prefix_token_id)

    def _checked_id(self, prefix_token_id: int | None) -> int | None:
        vocab_size = self._model.decoder.config.vocab_size
        if prefix_token_id is None or prefix_token_id in range(vocab_size):
            return prefix_token_id
        message = f"model argument `prefix_token_id` is {prefix_token_id!r}, expected 0 to {vocab_size - 1}"
        raise UsageError(message, code="E_LM_EVAL_ARGS")

    def close(self) -> None:
        """Let go of the template's child process."""
        self._model.close()

    # -- what lm-eval wants to know --------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Longest sequence, tokens."""
        return self._model.max_length

    @property
    def max_gen_toks(self) -> int:
        """Longest text, tokens, where the task does not say."""
        return _MAX_GEN_TOKENS

    @property
    def eot_token_id(self) -> int | None:
        """The end of a text."""
        return self._model.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is conditioned on.

        Raises:
            UsageError: The tokenizer has neither BOS nor EOS.
        """
        known = (self._prefix_token_id, self._model.bos_token_id, self._model.eos_token_id)
        for token_id in known:
            if token_id is not None:
                return token_id
        raise UsageError(
            "the tokenizer names neither BOS nor EOS, expected one for texts without a context",
            code="E_LM_EVAL_PREFIX",
            hint="give prefix_token_id=ID",
        )

    @property
    def tokenizer_name(self) -> str:
        """Name that lm-eval keeps rendered requests under: of the model, and of what renders them."""
        template = self._model.encoder.template
        told = None if template is None else [template.source, template.kwargs]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{self.pretrained.replace('/', '__')}-{digest[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """Say what was measured, for the results file."""
        decoder = self._model.decoder
        return {
            "model_num_parameters": decoder.num_parameters,
            "model_dtype": str(decoder.compute_dtype),
            "model_precision": decoder.precision,
            "model_sha": self._model.revision or "",
            "fam_engine_version": __version__,
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Give the template's source for the record; a named one is given as `template=FILE`."""
        if isinstance(chat_template, str):
            message = f"chat template `{chat_template}` by name, expected --apply_chat_template"
            raise UsageError(message, code="E_LM_EVAL_TEMPLATE", hint="give template=FILE")
        template = self._model.encoder.template
        return template.source if chat_template and template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render turns; without a generation prompt the last one is left open, to be continued.

        Raises:
            UsageError: The model has no template, or it does not render these turns.
        """
        renderer = self._model.encoder.renderer
        if renderer is None:
            message = "the model has no chat template, which --apply_chat_template needs"
            raise UsageError(message, code="E_LM_EVAL_TEMPLATE", hint="give template=FILE")
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        if not add_generation_prompt:
            turns[-1] = Message(turns[-1].role, turns[-1].content + _OPEN_END)
        try:
            text = renderer.render(turns, add_generation_prompt=add_generation_prompt)
        except RecordError as error:
            raise UsageError(error.reason, code=error.code) from None
        return text if add_generation_prompt else _left_open(text, chat_history[-1]["content"])

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **_: object,
    ) -> list[int]:
        """Encode a text; BOS as the model was told, unless `add_special_tokens` says otherwise."""
        add_bos = self._add_bos if add_special_tokens is None else add_special_tokens
        ids: list[int] = self._model.encode([string], add_bos=add_bos)[0].tolist()
        return ids

    # -- log-likelihoods -------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Give (log-likelihood, whether greedy decoding writes it) of each continuation.

        Raises:
            InputError: A continuation has no token of its own.
        """
        asked = self._encoded([request.args for request in requests])
        return self._answers(asked, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Give the log-likelihood of each whole text, in windows where it is longer than the model."""
        texts = [request.args[0] for request in requests]
        windows: list[_Asked] = []
        owners: list[int] = []
        for owner, ids in enumerate(self._model.encode(texts, add_bos=self._add_bos)):
            found = list(self._windows(ids.tolist()))
            windows += found
            owners += [owner] * len(found)
        totals = [0.0] * len(texts)
        answers = self._answers(windows, disable_tqdm=disable_tqdm)
        for owner, (logprob, _) in zip(owners, answers, strict=True):
            totals[owner] += logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, ids: list[int]) -> Iterator[_Asked]:
        rolling = get_rolling_token_windows(
            token_list=ids,
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, rolling):
            yield _Asked(None, np.array(context, np.int32), np.array(continuation, np.int32))

    def _encoded(self, pairs: Sequence[tuple[str, str]]) -> list[_Asked]:
        """Encode contexts and continuations, each distinct text once."""
        moved = [_blanks_moved(*pair) for pair in pairs]
        texts = list(dict.fromkeys(text for c, t in moved if c for text in (c, c + t)))
        ids = dict(zip(texts, self._model.encode(texts, add_bos=self._add_bos), strict=True))
        alone = list(dict.fromkeys(t for c, t in moved if not c))
        alone_ids = dict(zip(alone, self._model.encode(alone, add_bos=False), strict=True))
        asked = []
        for pair, (context, continuation) in zip(pairs, moved, strict=True):
            if context:
                before = ids[context]
                after = ids[context + continuation][len(before) :]
            else:
                before, after = self._prefixed(alone_ids[continuation])
            if not (len(before) and len(after)):
                raise InputError(
                    f"the continuation {continuation!r} has no token of its own after the context "
                    f"that ends in {context[-40:]!r}, expected at least one",
                    code="E_LM_EVAL_EMPTY",
                    hint="begin the continuation with a blank, or end the context differently",
                )
            asked.append(_Asked(pair, before, after))
        return asked

    def _prefixed(self, ids: Int32) -> tuple[Int32, Int32]:
        """Put the prefix token before a text without a context, unless it begins with it."""
        prefix = self.prefix_token_id
        if len(ids) and ids[0] == prefix:
            return ids[:1], ids[1:]
        return np.array([prefix], np.int32), ids

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
    ) -> list[Answer]:
        """Answer requests that are ids already."""
        asked = [
            _Asked(texts, np.array(context, np.int32), np.array(continuation, np.int32))
            for texts, context, continuation in requests
        ]
        return self._answers(asked, disable_tqdm=disable_tqdm)

    def _answers(self, asked: Sequence[_Asked], *, disable_tqdm: bool) -> list[Answer]:
        pairs = [(self._cut(one), one.continuation) for one in asked]
        answers: dict[int, Answer] = {}
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="loglikelihood requests") as bar:
            for result in self._model.continuations(pairs):
                answers[result.index] = answer = _answer(result)
                texts = asked[result.index].texts
                if texts is not None:  # windows are kept as the whole text they are of
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
                bar.update(1)
        return [answers[index] for index in range(len(pairs))]

    def _cut(self, one: _Asked) -> Int32:
        """Cut a context from the left to what fits: all of it and the continuation but the last."""
        room = self.max_length + 1 - len(one.continuation)
        if room < 1:
            raise InputError(
                f"a continuation of {len(one.continuation)} tokens, expected at most "
                f"{self.max_length}",
                code="E_TOO_LONG",
            )
        return one.context[-room:]

    # -- texts -----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings, its end token or its length."""
        groups: dict[Sampling, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_sampling(request.args[1]), []).append(index)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until requests") as bar:
            for sampling, members in groups.items():
                contexts = self._contexts([requests[index].args[0] for index in members], sampling)
                asked = (
                    Request(context, seed=index)
                    for index, context in zip(members, contexts, strict=True)
                )
                for completion in self._model.generate(asked, sampling):
                    index = members[completion.request]
                    texts[index] = completion.text
                    args = requests[index].args
                    self.cache_hook.add_partial("generate_until", args, completion.text)
                    bar.update(1)
        return [texts[index] for index in range(len(requests))]

    def _contexts(self, texts: Sequence[str], sampling: Sampling) -> list[Int32]:
        """Encode contexts, cut from the left so that the text has room."""
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks {sampling.max_new_tokens}, expected less than {self.max_length}, "
                "the longest sequence",
                code="E_LM_EVAL_LENGTH",
            )
        encoded = self._model.encode(texts, add_bos=self._add_bos)
        prefix = np.array([self.prefix_token_id], np.int32)
        return [ids[-room:] if len(ids) else prefix for ids in encoded]


def _one_of(name: str, value: object, known: tuple[object, ...]) -> Any:  # noqa: ANN401 - one of a Literal
    if value not in known:
        expected = ", ".join(map(str, known))
        raise UsageError(
            f"model argument `{name}` is {value!r}, expected one of {expected}",
            code="E_LM_EVAL_ARGS",
        )
    return value


def _template_kwargs(args: Any, enable_thinking: bool | None) -> dict[str, Any]:  # noqa: ANN401 - lm-eval checks nothing
    if args is not None and not isinstance(args, Mapping):
        message = f"model argument `chat_template_args` is {args!r}, expected names and values"
        hint = "give it in a YAML file with --config, or enable_thinking=False alone"
        raise UsageError(message, code="E_LM_EVAL_ARGS", hint=hint)
    _one_of("enable_thinking", enable_thinking, _YES_OR_NO)
    told = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return {**(args or {}), **told}


def _left_open(text: str, turn: str) -> str:
    """Cut a rendered text where its last turn ends, as transformers does.

    Args:
        text: Rendered with `_OPEN_END` after the last turn.
        turn: The last turn.

    Raises:
        UsageError: The turn is not in it.
    """
    before, mark, after = text.rpartition(_OPEN_END.rstrip())
    if not mark or turn.strip() not in before:
        message = "the chat template changes the turn that is to be continued"
        raise UsageError(message, code="E_LM_EVAL_TEMPLATE")
    # A template that trims turns would have trimmed this one too, had the mark not been there.
    return before if after.startswith(" ") else before.rstrip()


def _device(device: str) -> str:
    return "auto" if device == "cuda:0" else device


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Move the blanks a context ends with to its continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _answer(result: Continuation) -> Answer:
    logprob = math.fsum(result.facts.logprobs.tolist())
    if not math.isfinite(logprob):
        message = "the model gives no finite log-prob"
        raise InputError(message, code="E_NONFINITE", where=f"request {result.index + 1}")
    return logprob, bool((result.facts.ranks == 1).all())


def _sampling(arguments: Mapping[str, Any]) -> Sampling:
    """Read a task's generation arguments.

    Raises:
        UsageError: One that we do not have.
    """
    # `null` in a task's YAML is a setting that is not given, as to transformers.
    told = {name: value for name, value in arguments.items() if value is not None}
    given = dict(normalize_gen_kwargs(told, _MAX_GEN_TOKENS))
    given.pop("do_sample", None)
    sampling = Sampling(
        max_new_tokens=given.pop("max_gen_toks"),
        temperature=float(given.pop("temperature", 0.0)),
        top_p=float(given.pop("top_p", 1.0)),
        top_k=int(given.pop("top_k", 0)),
        stop=tuple(filter(None, _strings(given.pop("until", ())))),
    )
    for name in given:
        raise UsageError(
            f"generation argument `{name}` is not supported",
            code="E_LM_EVAL_ARGS",
            hint="supported: until, max_gen_toks, do_sample, temperature, top_p, top_k",
        )
    return sampling


def _strings(value: str | Iterable[str]) -> Iterable[str]:
    return (value,) if isinstance(value, str) else value

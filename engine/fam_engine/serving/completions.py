"""`POST /v1/completions`: from a request to what is computed for it, and from that to the response.

In: a body. Out: OpenAI's completion object, with vLLM's `prompt_logprobs` and token ids where asked for.

Log-probs are of the model itself, at temperature 1 whatever the request's; those of a text that was written are
computed once more from its ids, as `fam-engine score` computes a response, so they have the same bits. With `echo`,
`logprobs` and one greedy token, which is how lm-evaluation-harness asks for log-likelihoods, nothing is generated: the
token is read off the scores of the prompt.

The end token a model writes is no part of the text, but it is a token: it counts in `usage` and is the last of
`logprobs`, so that there is one token more than the prompt has where one was asked for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fam_engine.data.packing import Int32
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.continuations import Continuation, Pair
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.serving.logprobs import Row, openai_logprobs, prompt_logprobs, rows
from fam_engine.serving.protocol import (
    DEFAULT_MAX_TOKENS,
    CompletionRequest,
    RequestError,
    read_request,
)
from fam_engine.serving.served import Served

_UNKNOWN = np.zeros(1, np.int32)


@dataclass(frozen=True, eq=False)
class CompletionPlan:
    """What is to be computed for a request.

    Attributes:
        asked: The request.
        prompts: Ids of each prompt, at least one.
        given: The prompts as they came, texts or ids.
        sampling: How texts are written; None: none are.
        reads_next: Whether the one token that follows a prompt is read off its scores.
        num_top: How many of the most probable tokens the scores need.
    """

    asked: CompletionRequest
    prompts: list[Int32]
    given: list[str | list[int]]
    sampling: Sampling | None
    reads_next: bool
    num_top: int

    @property
    def num_samples(self) -> int:
        """Texts a prompt."""
        return self.asked.n or 1

    @property
    def scores_prompts(self) -> bool:
        """Whether log-probs of prompts are wanted."""
        asked = self.asked
        return asked.prompt_logprobs is not None or (
            bool(asked.echo) and asked.logprobs is not None
        )

    def requests(self) -> list[Request]:
        """Give what the generator is asked."""
        given = self.asked.seed
        # Without a seed each prompt has its own, or equal prompts would get equal texts.
        return [
            Request(prompt, secrets.randbits(63) if given is None else given, self.num_samples)
            for prompt in self.prompts
        ]

    def pairs(self, texts: Sequence[Sequence[Completion]]) -> list[Pair]:
        """Give what is scored once the texts are there: prompts, then texts."""
        after = _UNKNOWN if self.reads_next else _UNKNOWN[:0]
        pairs = []
        if self.scores_prompts:
            pairs += [(ids[:1], np.concatenate([ids[1:], after])) for ids in self.prompts]
        if self.asked.logprobs is not None:
            pairs += [
                (ids, written_ids(text))
                for ids, samples in zip(self.prompts, texts, strict=False)
                for text in samples
            ]
        return pairs


def plan_completion(body: bytes, served: Served) -> CompletionPlan:
    """Check a request and encode its prompts.

    Raises:
        RequestError: It cannot be answered.
    """
    asked = read_request(CompletionRequest, body)
    served.check_name(asked.model)
    given = _given_prompts(asked)
    prompts = _encoded(given, asked, served)
    max_tokens = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    num_samples = asked.n or 1
    served.check_length(max(map(len, prompts)), "prompt")
    served.check_length(max(map(len, prompts)) + max_tokens, "max_tokens")
    num_tokens = sum(map(len, prompts)) + max_tokens * num_samples * len(prompts)
    served.check_size(len(prompts) * num_samples, num_tokens, "prompt")
    reads_next = (
        bool(asked.echo)
        and asked.logprobs is not None
        and (max_tokens, asked.temperature, num_samples) == (1, 0, 1)
        and not asked.stop
    )
    num_top = max(asked.logprobs or 0, asked.prompt_logprobs or 0, int(reads_next))
    writes = max_tokens > 0 and not reads_next
    sampling = _sampling(asked, max_tokens) if writes else None
    vocab_size = served.model.decoder.config.vocab_size
    num_top = min(num_top, vocab_size)
    return CompletionPlan(asked, prompts, given, sampling, reads_next, num_top)


def _encoded(given: list[str | list[int]], asked: CompletionRequest, served: Served) -> list[Int32]:
    if not given:
        raise RequestError("`prompt` is an empty list", param="prompt")
    served.check_size(len(given), 0, "prompt")
    texts = [one for one in given if isinstance(one, str)]
    encoded = iter(served.model.encode(texts, add_bos=_add_bos(asked)) if texts else ())
    prompts = [
        next(encoded) if isinstance(one, str) else served.ids(one, "prompt") for one in given
    ]
    if not all(map(len, prompts)):
        raise RequestError("`prompt` has no tokens, expected at least one", param="prompt")
    return prompts


def _given_prompts(asked: CompletionRequest) -> list[str | list[int]]:
    """Give the prompts one by one, whichever of its four forms the parameter has."""
    given = asked.prompt
    if isinstance(given, str):
        return [given]
    members = [one for one in given if not isinstance(one, int)]
    return members if len(members) == len(given) else [[i for i in given if isinstance(i, int)]]


def _add_bos(asked: CompletionRequest) -> bool | None:
    return False if asked.add_special_tokens is False else None


def _sampling(asked: CompletionRequest, max_tokens: int) -> Sampling:
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    try:
        return Sampling(
            max_new_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            top_k=max(0, asked.top_k or 0),
            stop=stop,
        )
    except UsageError:  # the one value whose range has a gap
        message = f"`temperature` is {asked.temperature}, expected 0, or 0.001 to 2"
        raise RequestError(message, param="temperature") from None


def written_ids(text: Completion) -> Int32:
    """Give the tokens of a text with the one that ended it."""
    if text.end_token_id is None:
        return text.token_ids
    return np.append(text.token_ids, np.int32(text.end_token_id))


@dataclass(frozen=True, eq=False)
class Computed:
    """What was computed for a plan.

    Attributes:
        texts: Completions of each prompt; none where nothing was written.
        scores: Of `CompletionPlan.pairs`.
    """

    texts: list[list[Completion]]
    scores: list[Continuation]


def completion_response(plan: CompletionPlan, computed: Computed, served: Served) -> dict[str, Any]:
    """Make the response."""
    texts = computed.texts
    if plan.reads_next:
        read = zip(plan.prompts, computed.scores, strict=True)
        texts = [[_next_token(score, served)] for _, score in read]
    num_written = sum(len(written_ids(text)) for samples in texts for text in samples)
    num_prompt = sum(map(len, plan.prompts))
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
        "choices": _choices(plan, texts, computed.scores, served),
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_written,
            "total_tokens": num_prompt + num_written,
        },
    }


def _choices(
    plan: CompletionPlan,
    texts: list[list[Completion]],
    scores: Sequence[Continuation],
    served: Served,
) -> list[dict[str, Any]]:
    """Make the choices, sample after sample, prompt after prompt."""
    left = iter(scores)
    of_prompts = [next(left) for _ in plan.prompts] if plan.scores_prompts else []
    choices: list[dict[str, Any]] = []
    for number, prompt in enumerate(plan.prompts):
        before = [Row(int(prompt[0]))]
        if of_prompts:
            before += rows(prompt[1:].tolist(), of_prompts[number])
        samples = texts[number] if texts else [_nothing_written(number)] * plan.num_samples
        for text in samples:
            after: list[Row] = []
            if plan.reads_next:
                after = [_read_row(of_prompts[number])]
            elif plan.asked.logprobs is not None and texts:
                after = rows(written_ids(text).tolist(), next(left))
            choices.append(_choice(plan, len(choices), number, text, (before, after), served))
    return choices


def _choice(
    plan: CompletionPlan,
    index: int,
    number: int,
    text: Completion,
    found: tuple[list[Row], list[Row]],
    served: Served,
) -> dict[str, Any]:
    asked, prompt, names = plan.asked, plan.prompts[number], served.token_texts
    before, after = found
    echoed = _echoed(plan, number, served) if asked.echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": echoed + text.text,
        "logprobs": None,
        "finish_reason": "length" if text.finish_reason == "length" else "stop",
    }
    if asked.logprobs is not None:
        shown, offsets = after, names.offsets([row.token_id for row in after])
        if asked.echo:
            shown = before + after
            starts = names.offsets(prompt.tolist(), text=echoed)
            offsets = starts + [len(echoed) + offset for offset in offsets]
        choice["logprobs"] = openai_logprobs(shown, offsets, asked.logprobs, names)
    if asked.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs(before, asked.prompt_logprobs, names)
    if asked.return_token_ids:
        choice["prompt_token_ids"] = prompt.tolist()
        choice["token_ids"] = written_ids(text).tolist()
    return choice


def _echoed(plan: CompletionPlan, number: int, served: Served) -> str:
    """Give a prompt as text: as it was written, or decoded if it came as ids."""
    given = plan.given[number]
    return given if isinstance(given, str) else served.token_texts.whole(given)


def _nothing_written(number: int) -> Completion:
    return Completion(number, 0, _UNKNOWN[:0], "", "length")


def _read_row(score: Continuation) -> Row:
    """Give the most probable token in the last place of a prompt's scores.

    Its log-prob is float32, as those of all likely tokens; exact it would take to score the prompt once more with it.
    """
    top = score.top.slice(len(score.facts) - 1, len(score.facts))
    best = list(zip(top.token_ids[0].tolist(), top.logprobs[0].tolist(), strict=True))
    return Row(*best[0], 1, tuple(best))


def _next_token(score: Continuation, served: Served) -> Completion:
    token_id = _read_row(score).token_id
    if token_id in served.end_ids:
        return Completion(score.index, 0, _UNKNOWN[:0], "", "eos", token_id)
    ids = np.array([token_id], np.int32)
    text = served.token_texts.written([token_id])
    return Completion(score.index, 0, ids, text, "length")

"""`POST /v1/score`: how familiar many responses to one prompt are.

In: a body with `prompt` or `messages`, and `responses`. Out: the numbers and `flags` of `scores.parquet` for each
response, with the same bits `fam-engine score` gives them; with `tokens` also its token ids, log-probs, ranks and
entropies. The prompt is computed once for all of them. Texts become ids by the rule of `score`: chat template with its
generation prompt, each response encoded alone, the end of turn scored apart. Ids are taken as they are, with no end of
turn.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fam_engine.data.records import detect_form, read_record
from fam_engine.data.tokenizer import Encoded
from fam_engine.data.turns import CONVERSATION
from fam_engine.errors import RecordError
from fam_engine.jobs.scoring.continuations import Continuation, Pair
from fam_engine.measure.metrics import score_record
from fam_engine.serving.protocol import RequestError, ScoreRequest, read_request
from fam_engine.serving.served import Served

_NO_IDS = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class ScorePlan:
    """What is to be computed for a request.

    Attributes:
        asked: The request.
        encoded: Each response, with the prompt before it.
        num_bytes: UTF-8 bytes of each response; None where it came as ids.
    """

    asked: ScoreRequest
    encoded: list[Encoded]
    num_bytes: list[int | None]

    def pairs(self) -> list[Pair]:
        """Give what is scored."""
        return [
            (one.context_ids, np.concatenate([one.response_ids, one.end_of_turn_ids]))
            for one in self.encoded
        ]


def plan_score(body: bytes, served: Served) -> ScorePlan:
    """Check a request and encode it.

    Raises:
        RequestError: It cannot be answered.
    """
    asked = read_request(ScoreRequest, body)
    served.check_name(asked.model)
    served.check_size(len(asked.responses), 0, "responses")
    if (asked.prompt is None) == (asked.messages is None):
        message = "expected either `prompt` or `messages`"
        raise RequestError(message, param="prompt" if asked.messages else "messages")
    if asked.tools is not None and asked.messages is None:
        raise RequestError("`tools` go with `messages`, not with `prompt`", param="tools")
    has_ids = isinstance(asked.prompt, list)
    _check_kwargs(asked, served)
    if has_ids != isinstance(asked.responses[0], list):
        message = "`prompt` and `responses` are ids and text, expected both of one kind"
        raise RequestError(message, param="responses")
    _check_responses(asked.responses)
    encoded = _ids(asked, served) if has_ids else _texts(asked, served)
    _check_fit(encoded, served)
    sizes = [None if has_ids else len(str(one).encode()) for one in asked.responses]
    return ScorePlan(asked, encoded, sizes)


def _check_kwargs(asked: ScoreRequest, served: Served) -> None:
    """Refuse what no template reads: a typing error would silently change nothing."""
    renderer = served.model.encoder.renderer
    for name in asked.chat_template_kwargs or {}:
        if isinstance(asked.prompt, list):
            problem = "go with texts, not with ids"
        elif name in CONVERSATION:
            problem = f"have `{name}`, which comes from the request itself; leave it out"
        elif renderer is None:
            problem = "are given, but the model has no chat template to read them; leave them out"
        elif not renderer.reads(name):
            problem = f"have `{name[:60]}`, which the chat template does not read; leave it out"
        else:
            continue
        message = f"`chat_template_kwargs` {problem}"
        raise RequestError(message, param="chat_template_kwargs", code="E_TEMPLATE_KWARGS")


def _check_responses(responses: Sequence[str | list[int]]) -> None:
    """Refuse an empty one by its place among up to a thousand."""
    for index, response in enumerate(responses):
        if not response:
            param = f"responses[{index}]"
            message = f"`{param}` is empty, expected at least one token"
            raise RequestError(message, param=param, code="E_EMPTY_RESPONSE")


def _check_fit(encoded: Sequence[Encoded], served: Served) -> None:
    """Refuse what is too long for the model, or too much at once."""
    # The last target is predicted, never fed.
    longest = max(
        len(e.context_ids) + len(e.response_ids) + len(e.end_of_turn_ids) for e in encoded
    )
    served.check_length(longest - 1, "responses")
    num_tokens = sum(len(one.response_ids) for one in encoded) + len(encoded[0].context_ids)
    served.check_size(0, num_tokens, "responses")


def _ids(asked: ScoreRequest, served: Served) -> list[Encoded]:
    assert isinstance(asked.prompt, list)
    context = served.ids(asked.prompt, "prompt")
    return [
        Encoded(context, served.ids(ids, "responses"), _NO_IDS, "", "", (), context)  # type: ignore[arg-type]
        for ids in asked.responses
    ]


def _texts(asked: ScoreRequest, served: Served) -> list[Encoded]:
    """Encode texts as records of a file are."""
    first = _encoded(asked, asked.responses[:1], served)
    # The prompt is encoded again for each response: one that does not fit is refused before that.
    _check_fit(first, served)
    return first + _encoded(asked, asked.responses[1:], served)


def _encoded(
    asked: ScoreRequest, responses: Sequence[str | list[int]], served: Served
) -> list[Encoded]:
    form = detect_form(_row(asked, ""))
    asked_by = "prompt" if asked.messages is None else "messages"
    try:
        records = [
            read_record(_row(asked, str(text)), form, file="request", line=number, stem="request")
            for number, text in enumerate(responses, start=1)
        ]
    except RecordError as error:
        message = f"`{asked_by}`: {error.reason}"
        raise RequestError(message, param=asked_by, code=error.code) from None
    results = served.model.encoder.encode(records)
    encoded = [one for one in results if isinstance(one, Encoded)]
    for one in results:
        if isinstance(one, RecordError):
            # Of what a template refuses, the response is hardly ever the reason.
            param = asked_by if one.code.startswith("E_TEMPLATE") else "responses"
            raise RequestError(f"`{param}`: {one.reason}", param=param, code=one.code)
    return encoded


def _row(asked: ScoreRequest, response: str) -> dict[str, Any]:
    given = {"chat_template_kwargs": asked.chat_template_kwargs, "response": response}
    if asked.messages is not None:
        turns = [turn.model_dump(exclude_none=True) for turn in asked.messages]
        for index, turn in enumerate(turns):
            if calls := turn.get("tool_calls"):
                param = f"messages[{index}].tool_calls"
                turn["tool_calls"] = [_with_arguments(call, param) for call in calls]
        return {"messages": turns, "tools": asked.tools, **given}
    return {"prompt": asked.prompt, **given}


def _with_arguments(call: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """Give a call with its arguments as an object, as templates read them and OpenAI's requests do not have them.

    So does vLLM (`_postprocess_messages` of its `chat_utils.py`). Not done for records of files, where a template is
    handed what transformers would hand it.
    """
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _with_arguments(function, param)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        message = f"`{param}` holds arguments that are not the JSON of an object"
        raise RequestError(message, param=param)
    return {**call, "arguments": value}


def score_response(
    plan: ScorePlan, scores: Sequence[Continuation], served: Served
) -> dict[str, Any]:
    """Make the response."""
    data = [{"index": index, **_scored(plan, index, score)} for index, score in enumerate(scores)]
    num_prompt = len(plan.encoded[0].context_ids)
    num_responses = sum(len(one.response_ids) for one in plan.encoded)
    return {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "score",
        "created": int(time.time()),
        "model": served.name,
        "data": data,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_responses,
            "total_tokens": num_prompt + num_responses,
        },
    }


def _scored(plan: ScorePlan, index: int, score: Continuation) -> dict[str, Any]:
    one, facts = plan.encoded[index], score.facts
    if not math.isfinite(math.fsum(facts.logprobs.tolist())):
        message = f"the model gives response {index} no finite log-prob"
        raise RequestError(message, status=500, code="nonfinite", kind="server_error")
    num_tokens = len(one.response_ids)
    num_bytes = plan.num_bytes[index]
    metrics = asdict(
        score_record(
            facts,
            num_prompt_tokens=len(one.context_ids),
            num_response_tokens=num_tokens,
            num_bytes=num_bytes or 0,
        )
    )
    metrics["num_bytes"] = num_bytes
    metrics["flags"] = list(one.flags)
    if plan.asked.tokens:
        shown = facts.slice(0, num_tokens)
        metrics["token_ids"] = one.response_ids.tolist()
        metrics["logprobs"] = shown.logprobs.tolist()
        metrics["ranks"] = shown.ranks.tolist()
        metrics["entropies"] = shown.entropies.tolist()
    return metrics

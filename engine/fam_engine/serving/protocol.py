"""What a request may hold, and how it is refused.

In: the bytes of a request's body. Out: a checked request, or a `RequestError` that names the parameter, in the form of
OpenAI's errors. Everything that is not known is refused, and so is everything that is known and not done here, unless
it is given its neutral value: a server that ignores a parameter answers another question than it was asked.

Names and meanings: OpenAI's reference of `POST /v1/completions`; from vLLM `prompt_logprobs`, `top_k`,
`return_token_ids`, `add_special_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from fam_engine.config import nearest

MAX_TOP: Final = 20
MAX_STOPS: Final = 16
MAX_SAMPLES: Final = 64
# OpenAI's own default.
DEFAULT_MAX_TOKENS: Final = 16


class RequestError(Exception):
    """A request that is not answered.

    Args:
        message: What was found and what was expected.
        status: Of HTTP.
        param: The parameter it is about.
        code: Stable name.
        kind: OpenAI's `type`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """Give OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str = Field(description="the model's name, see /v1/models")


_Top = Annotated[int, Field(ge=0, le=MAX_TOP)]
_TOP: Final = f"a whole number from 0 to {MAX_TOP}"
_Stop = Annotated[str, Field(min_length=1)]
_Member = TypeVar("_Member")
# One member that does not fit is enough: millions of errors would stall the server for a minute.
_List = Annotated[list[_Member], Field(fail_fast=True)]
_Filled = Annotated[_List[_Member], Field(min_length=1)]
_Objects = _List[dict[str, Any]]
_Zero = Annotated[float, Field(ge=0, le=0)]


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`. Null is as good as absent."""

    prompt: str | _List[str] | _List[int] | _List[_List[int]] = Field(
        description="a text, a list of token ids, or a list of either"
    )
    max_tokens: int | None = Field(default=None, ge=0, description="a whole number of at least 0")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 to 2")
    top_p: float | None = Field(default=None, gt=0, le=1, description="more than 0, at most 1")
    top_k: int | None = Field(
        default=None, ge=-1, description="a whole number of at least 1; 0 or -1: all"
    )
    n: int | None = Field(
        default=None, ge=1, le=MAX_SAMPLES, description=f"a whole number from 1 to {MAX_SAMPLES}"
    )
    seed: int | None = Field(
        default=None, ge=-(1 << 63), lt=1 << 63, description="an integer of 64 bits"
    )
    stop: _Stop | Annotated[_List[_Stop], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description=f"a text that is not empty, or up to {MAX_STOPS} of them"
    )
    echo: bool | None = Field(default=None, description="true or false")
    logprobs: _Top | None = Field(default=None, description=_TOP)
    prompt_logprobs: _Top | None = Field(default=None, description=_TOP)
    return_token_ids: bool | None = Field(default=None, description="true or false")
    add_special_tokens: bool | None = Field(default=None, description="true or false")
    user: str | None = Field(default=None, description="a text")
    # Known, and not done.
    stream: Literal[False] | None = Field(default=None, description="false: no streaming here")
    stream_options: None = Field(default=None, description="null: no streaming here")
    best_of: int | None = Field(default=None, description="the same as `n`, 1 by default")
    suffix: None = Field(default=None, description="null: not supported")
    presence_penalty: _Zero | None = Field(default=None, description="0: not supported")
    frequency_penalty: _Zero | None = Field(default=None, description="0: not supported")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(
        default=None, description="empty: not supported"
    )

    @field_validator("best_of")
    @classmethod
    def _all_is_kept(cls, best_of: int | None, others: ValidationInfo) -> int | None:
        if best_of is not None and best_of != (others.data.get("n") or 1):
            raise ValueError
        return best_of


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="system, developer, user, assistant or tool"
    )
    content: str | _Objects | None = Field(default=None, description="a text or a list of parts")
    tool_calls: _Objects | None = Field(default=None, description="a list of calls")
    tool_call_id: str | None = Field(default=None, description="a text")
    name: str | None = Field(default=None, description="a text")
    reasoning_content: str | None = Field(default=None, description="a text")


class ScoreRequest(_Request):
    """Body of `POST /v1/score`: `prompt` or `messages` (with `tools`), and the responses to it."""

    prompt: str | _Filled[int] | None = Field(
        default=None, description="a text or a list of token ids"
    )
    messages: _Filled[Turn] | None = Field(default=None, description="a list of {role, content}")
    tools: _Objects | None = Field(default=None, description="a list of functions' JSON Schemas")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="names and values for the chat template"
    )
    responses: _Filled[str] | _Filled[_List[int]] = Field(
        description="a list of texts, or of lists of token ids where `prompt` is one"
    )
    tokens: bool | None = Field(default=None, description="true or false")


RequestT = TypeVar("RequestT", bound=_Request)


def read_request(kind: type[RequestT], body: bytes) -> RequestT:
    """Check the body of a request.

    Raises:
        RequestError: It is no JSON object of this kind.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _first_problem(kind, error) from None


def _first_problem(kind: type[_Request], error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {problem['msg']}", code="invalid_json")
    if not problem["loc"]:
        return RequestError("the body is not a JSON object", code="invalid_json")
    owner, outer, loc = _owner(kind, problem["loc"])
    name = str(loc[0])
    param = f"{outer}{name}"
    field = owner.model_fields.get(name)
    if field is None:
        hint = nearest(name, list(owner.model_fields))
        return RequestError(f"unknown parameter `{_short(param)}`{hint}", param=param[:80])
    if problem["type"] == "missing":
        return RequestError(f"`{param}` is missing, expected {field.description}", param=param)
    # Numbers in the place of an error count members of a list, names tell alternatives apart.
    is_member = any(isinstance(part, int) for part in loc)
    found = _shown(problem["input"])
    verb = "holds" if is_member else "is"
    return RequestError(f"`{param}` {verb} {found}, expected {field.description}", param=param)


_Place = tuple[int | str, ...]


def _owner(kind: type[_Request], loc: _Place) -> tuple[type[BaseModel], str, _Place]:
    """Find whose field an error is about, a turn's or the request's; what stands before its name; its place there."""
    if loc[0] == "messages" and len(loc) > 2:
        return Turn, f"messages[{loc[1]}].", loc[2:]
    return kind, "", loc


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    try:
        return _short(json.dumps(value))
    except ValueError:  # an integer of thousands of digits
        return "a number too large"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."

"""TRL: familiarity as a reward for GRPO and its kin.

In: what a TRL trainer gives a reward function: prompts and completions, as texts or as turns. Out: a finite number a
completion, higher for what the scoring model finds more familiar, and never dependent on length: minus the mean nats a
token, or minus the bits a byte. The sum was rejected, for it pays a policy for stopping early.

What cannot be scored gets the floor. TRL allows None, but then an empty completion takes part in no comparison (TRL
1.16) or counts as 0, above any honest log-prob (older releases): either way a policy may hide there. What is neither
empty nor too long is warned of, once a code, and where nothing at all can be scored the first call raises: a template
that refuses every prompt would make the floor a constant, which teaches nothing and which nobody would see.

What a policy can still do, for any likelihood is easily pleased: fall into repetition, which gets likelier the longer
it goes on, write what is short or generic, or never end. The end of turn is not part of a completion's text, so its
probability is not rewarded and leaving it out costs nothing: give `mask_truncated_completions` in `GRPOConfig`, and use
this beside a reward for being right, never alone.

A prompt is what the policy was given: text goes in as it stands, turns go through the scoring model's chat template,
with the tools. Of a completion of several turns, calls of tools among them, the last turn is rewarded and the others
stand before it. Contract read from TRL 1.16, `trainer/grpo_trainer.py` (`_calculate_rewards`, `_tokenize_prompts`); TRL
itself is not imported, for a reward is any callable.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

from fam_engine.arguments import is_number
from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.turns import read_told
from fam_engine.errors import InputError, RecordError, UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer

# What a policy writes in the course of its training, rewarded with the floor.
_OF_A_POLICY = ("E_EMPTY_RESPONSE", "E_TOO_LONG")


class FamiliarityReward:
    r"""A reward function: how familiar completions are to a model that is not the one in training.

    Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        metric: `nll_mean` or `bits_per_byte`; the reward is minus that.
        floor: Least reward, and that of a completion that is empty, too long or cannot be scored.
            The default is worse than guessing among 160,000 tokens (in nats a token).
        tools: What the policy may call, as `GRPOTrainer(tools=...)` has it: functions, or their JSON Schemas.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model or the adapter is not there.
        UsageError: Another metric, a floor that is no finite number of at most 0, tools that are none, or
            another setting as of `LazyScorer`.

    Example:
        >>> reward = FamiliarityReward("embedded")
        >>> right, empty = reward(["What is 2 + 3?\n"] * 2, ["5", ""])
        >>> right > empty == -12.0
        True
    """

    def __init__(
        self,
        model: str | Path,
        *,
        metric: Literal["nll_mean", "bits_per_byte"] = "nll_mean",
        floor: float = -12.0,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        if metric not in ("nll_mean", "bits_per_byte"):
            raise UsageError(
                f"`{metric}` is no metric for a reward, expected nll_mean or bits_per_byte",
                code="E_METRIC",
                hint="sums depend on length, which a policy would learn instead",
            )
        if not is_number(floor) or not -math.inf < floor <= 0:
            message = f"floor is {floor!r}, expected a finite number of at most 0"
            raise UsageError(message, code="E_TRL_FLOOR")
        # By which TRL logs it. Releases up to 1.8 ask every reward for it, later ones fall back to the class's.
        self.__name__ = type(self).__name__
        self._metric = metric
        self._floor = float(floor)
        self._tools = _schemas(tools)
        self._has_scored = False
        # Codes that nobody has to be told of (again).
        self._told = set(_OF_A_POLICY)
        self._scorer = LazyScorer(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
            template=template,
            chat_template_kwargs=chat_template_kwargs,
            max_tokens_per_batch=max_tokens_per_batch,
        )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Sequence[Any] | None = None,
        **_: object,
    ) -> list[float]:
        """Give the rewards of completions.

        Args:
            prompts: Texts, which are taken as they stand, or lists of turns.
            completions: Texts, or lists of turns, of which the last is rewarded and has to be the
                assistant's; as many.
            tools: Column of the data set: what each prompt's turns are told of instead of the reward's own.
            chat_template_kwargs: Likewise, what else its template is told.

        Returns:
            A finite number a completion, in order.

        Raises:
            InputError: No completion has been scored yet and none can be here, all for their form or what the
                template says of it: every reward would be the floor.
        """
        absent = [None] * len(prompts)
        # Columns may be arrays, which have no truth.
        told = [absent if column is None else column for column in (tools, chat_template_kwargs)]
        records = [self._record(*row) for row in zip(prompts, completions, *told, strict=True)]
        rewards = [self._floor] * len(records)
        errors: list[str | None] = [None] * len(records)
        for verbatim in (True, False):
            places = [i for i, p in enumerate(prompts) if isinstance(p, str) == verbatim]
            if places:
                table = self._scorer.score_each([records[i] for i in places], verbatim=verbatim)
                found = (table[name].to_pylist() for name in (self._metric, "error"))
                for place, value, error in zip(places, *found, strict=True):
                    rewards[place], errors[place] = self._reward(value), error
        self._tell(errors)
        return rewards

    def _record(self, prompt: Any, completion: Any, tools: Any, kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Make a record; text is told nothing, for no template reads it."""
        record = {"prompt": prompt, "completion": completion}
        if not isinstance(prompt, str):
            is_told = len(tools) > 0 if isinstance(tools, Sized) else tools is not None
            own = tools if is_told else self._tools
            record |= {"tools": own, "chat_template_kwargs": kwargs}
        return record

    def _tell(self, errors: Sequence[str | None]) -> None:
        """Warn of what cannot be scored, once a code: a floor for all looks like any other reward."""
        told = [error for error in errors if error is not None]
        self._has_scored |= len(told) < len(errors)
        if told and not self._has_scored and all(map(_is_of_no_policy, told)):
            raise InputError(
                f"not one completion can be scored; the first fault is {told[0]}",
                code="E_INPUT_UNUSABLE",
                hint="see that the scoring model's chat template takes the prompts as they are",
            )
        for error in told:
            code = _code(error)
            if code not in self._told:
                self._told.add(code)
                message = f"completions that cannot be scored get the floor, {self._floor}: {error}"
                warnings.warn(message, stacklevel=3)

    def _reward(self, value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return self._floor
        return max(-value, self._floor)


def _code(error: str) -> str:
    return error.partition(":")[0]


def _is_of_no_policy(error: str) -> bool:
    """Whether an error is the template's or a form's. Which turn comes last is the policy's own."""
    code = _code(error)
    return re.match("E_(TEMPLATE|RECORD)", code) is not None and code != "E_RECORD_ROLE"


def _schemas(tools: Iterable[Any] | None) -> list[Any] | None:
    """Give tools as a template is told of them; None: there are none.

    Raises:
        UsageError: One is no tool.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable | None):
        message = (
            f"tools is of type {type(tools).__name__}, expected a list of functions or JSON Schemas"
        )
        raise UsageError(message, code="E_TRL_TOOLS")
    schemas = [_schema(tool) if callable(tool) else tool for tool in tools or ()]
    try:
        read_told({"tools": schemas})
    except RecordError:
        message = "tools holds what names no function, expected functions or their JSON Schemas"
        raise UsageError(message, code="E_TRL_TOOLS") from None
    return schemas or None


def _schema(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Describe a function as transformers does, which TRL has do it."""
    from transformers.utils import chat_template_utils as utils

    try:
        schema: Mapping[str, Any] = utils.get_json_schema(function)
    except (utils.DocstringParsingException, utils.TypeHintParsingException) as error:
        message = f"tools holds a function that cannot be described: {error}"
        raise UsageError(message, code="E_TRL_TOOLS") from None
    return schema

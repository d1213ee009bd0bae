"""TRL: familiarity as a reward for GRPO and its kin.

In: what a TRL trainer gives a reward function: prompts and completions, as texts or as turns. Out: a finite number a
completion, higher for what the scoring model finds more familiar, and never dependent on length: minus the mean nats a
token, or minus the bits a byte. The sum was rejected, for it pays a policy for stopping early.

What cannot be scored gets the floor. TRL allows None, but then an empty completion takes part in no comparison (TRL
1.16) or counts as 0, above any honest log-prob (older releases): either way a policy may hide there.

What a policy can still do, for any likelihood is easily pleased: fall into repetition, which gets likelier the longer
it goes on, write what is short or generic, or never end. The end of turn is not part of a completion's text, so its
probability is not rewarded and leaving it out costs nothing: give `mask_truncated_completions` in `GRPOConfig`, and use
this beside a reward for being right, never alone. Contract read from TRL 1.16, `trainer/grpo_trainer.py`
(`_calculate_rewards`); TRL itself is not imported, for a reward is any callable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer


class FamiliarityReward:
    r"""A reward function: how familiar completions are to a model that is not the one in training.

    Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        metric: `nll_mean` or `bits_per_byte`; the reward is minus that.
        floor: Least reward, and that of a completion that is empty, too long or cannot be scored.
            The default is worse than guessing among 160,000 tokens (in nats a token).
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model or the adapter is not there.
        UsageError: Another metric, or a floor that is not a finite number.

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
        if not math.isfinite(floor):
            raise UsageError(f"floor is {floor}, expected a finite number", code="E_TRL_FLOOR")
        # By which TRL logs it. Releases up to 1.8 ask every reward for it, later ones fall back to the class's.
        self.__name__ = type(self).__name__
        self._metric = metric
        self._floor = float(floor)
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
        self, prompts: Sequence[Any], completions: Sequence[Any], **_: object
    ) -> list[float]:
        """Give the rewards of completions.

        Args:
            prompts: Texts, or lists of turns.
            completions: Texts, or lists of turns that end in the assistant's; as many.

        Returns:
            A finite number a completion, in order.
        """
        pairs = zip(prompts, completions, strict=True)
        table = self._scorer.score_each([{"prompt": p, "completion": c} for p, c in pairs])
        return [self._reward(value) for value in table[self._metric].to_pylist()]

    def _reward(self, value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return self._floor
        return max(-value, self._floor)

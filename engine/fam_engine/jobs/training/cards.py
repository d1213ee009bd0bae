"""What training would take on GPUs of common sizes, whether this machine has one or not.

In: the model's shape, the settings, the longest record. Out: a plan for each size, made by the function that plans a
run. From shapes alone: nothing is loaded and no GPU asked. The host is taken to have as much memory as it needs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import torch

from fam_engine.config import TrainConfig
from fam_engine.jobs.training.budget import least_plan, memory_needs, plan_for
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import card_compute_dtype
from fam_engine.model.lora import LoraSpec
from fam_engine.model.memory import CARDS, CONTEXT_BYTES

# Of an RTX 4090; no other consumer card of these sizes has more.
_MULTIPROCESSORS: Final = 128


@dataclass(frozen=True)
class CardPlan:
    """Training on one card with nothing else on it, estimated.

    Attributes:
        gigabytes: Its size.
        fits: Whether the model, and the longest record in a micro-batch of its own, fit at all.
        max_tokens: Token budget of a micro-batch.
        num_whole: Layers that keep their activations.
        num_layers: All layers.
        total: Bytes taken.
        host: Bytes taken of the host's memory.
    """

    gigabytes: int
    fits: bool
    max_tokens: int
    num_whole: int
    num_layers: int
    total: int
    host: int


def plan_cards(
    config: TrainConfig, model: ModelConfig, spec: LoraSpec, longest: int
) -> list[CardPlan]:
    """Plan for every size.

    Args:
        config: The settings.
        model: The model's shape.
        spec: The adapter's form.
        longest: Tokens of the longest record.
    """
    device = torch.device("cuda")
    needs = memory_needs(
        model,
        spec,
        precision=config.precision,
        compute_dtype=card_compute_dtype(config.compute_dtype, precision=config.precision),
        device=device,
        optimizer=config.optimizer,
        num_multiprocessors=_MULTIPROCESSORS,
    )
    least = least_plan(needs, longest, sys.maxsize)
    cards = []
    for gigabytes in CARDS:
        free = gigabytes * 2**30 - CONTEXT_BYTES
        plan = plan_for(
            needs,
            free,
            device,
            longest=longest,
            max_tokens=config.max_tokens_per_batch,
            host_free=sys.maxsize,
        )
        cards.append(
            CardPlan(
                gigabytes=gigabytes,
                fits=least.total <= free,
                max_tokens=plan.max_tokens,
                num_whole=plan.num_whole,
                num_layers=plan.num_layers,
                total=plan.total,
                host=plan.host,
            )
        )
    return cards

"""What a dry run says of memory: a line for the device at hand, and of GPUs only what makes a difference."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fam_engine.model.config import ModelConfig
from fam_engine.model.memory import plan_cards
from fam_engine.report.forecast import print_forecast
from tests.model.training.test_recomputation import LLAMA, SHAPES

GIB = 1 << 30


def plan(weights: float, left: float, tokens: int, least: float | None = None) -> dict[str, int]:
    return {
        "weight_bytes": int(weights * GIB),
        "left_bytes": int(left * GIB),
        "least_bytes": int((weights + 0.25 if least is None else least) * GIB),
        "max_tokens_per_batch": tokens,
    }


def printed(**fields: Any) -> str:  # noqa: ANN401
    forecast = {
        "num_records": 1,
        "quarantined": {},
        "tokens": {"prompt": 1, "response": 1, "computed": 64, "without_sharing": 64},
        "lengths": {},
        "longest": [],
        "max_tokens_per_batch": 4096,
        "memory_bytes": 6 * GIB,
        "device": plan(5.5, 2.5, 4096),
        "cards": {8: plan(5.5, 1.75, 4096), 24: plan(5.5, 17.75, 4096)},
        "least_bytes_with_nf4": 5 * GIB,
        "seconds": 1.0,
        "num_parts": 1,
        "num_workers": 1,
    }
    file = io.StringIO()
    print_forecast(forecast | fields, Console(file=file))
    return file.getvalue()


def test_a_model_that_does_well_everywhere_needs_no_table() -> None:
    text = printed()
    assert "about 6.00 GiB of memory (estimate), 8.00 are free" in text
    assert "GPU" not in text


def test_a_model_too_large_for_the_device_says_so() -> None:
    text = printed(device=plan(14, -6, 0))
    assert "does not fit in memory: about 14.25 GiB at least (estimate), 8.00 are free" in text


@pytest.mark.parametrize(("with_nf4", "hint"), [(6, "; use --precision nf4\n"), (8, " usable\n")])
def test_cards_that_differ_are_listed(with_nf4: int, hint: str) -> None:
    cards = {8: plan(15, -7.75, 0), 24: plan(15, 8.25, 32768)}
    text = printed(cards=cards, least_bytes_with_nf4=with_nf4 * GIB)
    first, second = text.splitlines(keepends=True)[-2:]
    assert first.startswith("   8 GB: does not fit, 15.25 GiB at least of 7.25 usable")
    assert first.endswith(hint)
    assert second == "  24 GB: 15.00 GiB of weights, 8.25 left, 32,768 tokens a batch\n"


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")
    model = ModelConfig.from_dict(LLAMA | SHAPES["8B"])
    plans = {
        name: plan_cards(model, precision=name, compute_dtype=torch.bfloat16, longest=2048)
        for name in ("bf16", "nf4")
    }
    least = plans["nf4"][8].least_bytes
    texts = {
        name: printed(
            cards={size: asdict(card) for size, card in cards.items()}, least_bytes_with_nf4=least
        )
        for name, cards in plans.items()
    }
    head = "on an NVIDIA GPU (estimates):\n"
    assert f"```\n{head}{texts['bf16'].partition(head)[2]}```\n" in page
    assert head not in texts["nf4"]
    assert {card.max_tokens_per_batch for card in plans["nf4"].values()} == {16384}

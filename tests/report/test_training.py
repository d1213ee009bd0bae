from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fam_engine.report.training import (
    example_text,
    print_merge_scores,
    print_training_forecast,
    print_training_summary,
)

EXAMPLE = {"prompt": "<s>2 + 3?\n", "supervised": ["It", " is", "\n", "5", "\x1b[2J", "</s>"]}
FORECAST: dict[str, Any] = {
    "shown": [EXAMPLE],
    "examples": {
        "trained": 1200,
        "validation": 30,
        "quarantined_by_code": {"E_TOO_LONG": 4},
    },
    "flags": {"prompt_cut": 2},
    "tokens": {"all": 9000, "supervised": 4000, "computed": 8000},
    "steps": 225,
    "epochs": 3.0,
    "micro_batches": 2.5,
    "max_tokens_per_batch": 2048,
    "num_trainable": 221184,
    "num_processes": 1,
    "memory": dict.fromkeys(("weights", "scratch", "adapter", "optimizer", "activations"), 2**28)
    | {"num_whole": 18, "num_layers": 32, "host": 0, "max_tokens": 2048, "num_tokens": 9024},
    "memory_bytes": 3 << 30,
    "free_bytes": 2**33,
    "cards": [
        {"gigabytes": 8, "fits": False},
        {"gigabytes": 24, "fits": True, "total": 3 << 32}
        | {"max_tokens": 4096, "num_whole": 30, "num_layers": 32, "host": 3 << 29},
    ],
    "seconds": 600.0,
}


def printed(call: Any, value: Any, **settings: Any) -> str:  # noqa: ANN401
    console = Console(file=io.StringIO(), width=80, **settings)
    call(value, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_supervised_tokens_are_coloured_one_by_one() -> None:
    text = example_text(EXAMPLE, coloured=True)
    # What a record says must not steer the terminal, and a learnt newline must be seen.
    assert text.plain == "<s>2 + 3?\nIt is\\n\n5\\x1b[2J</s>"
    styles = [(span.start, str(span.style)) for span in text.spans]
    assert [start for start, _ in styles] == [10, 12, 15, 18, 19, 26]
    assert all("on green" in style for _, style in styles[::2])
    assert all("on cyan" in style for _, style in styles[1::2])


def test_without_colour_they_stand_in_brackets() -> None:
    text = printed(print_training_forecast, FORECAST)
    assert "<s>2 + 3?\n[[It is\n5\\x1b[2J</s>]]" in text
    coloured = printed(
        print_training_forecast, FORECAST, force_terminal=True, color_system="standard"
    )
    assert "[[" not in coloured
    assert "\x1b[2J" not in coloured


def test_cards_that_do_equally_well_are_not_listed() -> None:
    card = FORECAST["cards"][1]
    equal = FORECAST | {"cards": [card | {"gigabytes": size} for size in (8, 24)]}
    assert "GPU" not in printed(print_training_forecast, equal)
    unequal = FORECAST | {"cards": [card, card | {"total": 1 << 32}]}
    assert "on an NVIDIA GPU" in printed(print_training_forecast, unequal)


def test_a_forecast_says_what_would_happen() -> None:
    text = printed(print_training_forecast, FORECAST)
    for said in (
        "1,200 examples to train on, 30 to validate, 4 E_TOO_LONG",
        "2 flagged prompt_cut",
        "9,000 tokens, 4,000 of them supervised; 8,000 to compute",
        "225 steps, 3 epochs; 2.5 micro-batches a step, 2,048 tokens each",
        "221,184 parameters trained",
        "about 3.00 GiB of memory (estimate): weights 0.25, scratch 0.25, adapter 0.25, optimizer 0.25, "
        "activations 0.25; 18 of 32 layers keep theirs (of the longest record, 9,024 tokens; shorter ones keep "
        "more); 8.00 free",
        "on an NVIDIA GPU (estimates):\n   8 GB: does not fit",
        "  24 GB: 12.00 GiB, micro-batches of 4,096 tokens, 30 of 32 layers keep their",
        "activations, inputs of the others in 1.50 GiB of the host's memory\n",
        "about 10 min",
    ):
        assert said in text


def test_a_summary_says_what_came_out() -> None:
    summary = {
        "training": {
            "steps": 60,
            "epochs": 3.5,
            "stopped_early": True,
            "tokens": 126362,
            "nll_first": 1.0,
            "nll_last": 0.5,
            "kept": 0.75,
        },
        "examples": {"trained": 270, "quarantined_by_code": {"E_JSON_SYNTAX": 2}},
        "validation": {"before": 1.5, "best": 1.25, "best_step": 34, "last": 1.3},
        "performance": {"seconds_training": 30.0},
        "settings": {"loss": "stm"},
        "remarks": ["Mind this."],
    }
    text = printed(print_training_summary, summary)
    for said in (
        "60 steps, 3.5 epochs, stopped early: 270 examples, 126,362 supervised tokens, 30 s",
        "2.72 over the first steps, 1.65 over the last",
        "mean weight of a token: 0.750",
        "4.48 before, 3.49 with this adapter (step 34)",
        "Mind this.",
        "2 left out: E_JSON_SYNTAX",
    ):
        assert said in text
    summary["training"]["nll_first"] = 710.0
    assert "- over the first steps" in printed(print_training_summary, summary)


def test_merge_scores_fit_a_terminal() -> None:
    estimate = {"value": 3.75731, "low": 3.25, "high": 4.41}
    unsure = {"value": 3.95, "low": None, "high": None}
    row = {
        "model": "model and adapter",
        "precision": "nf4",
        "n": 100,
        "perplexity": {"geometric_mean": estimate, "token_weighted": unsure},
    }
    text = printed(print_merge_scores, [row])
    assert "model and adapter" in text
    assert "3.7573 (3.25-4.41)" in text
    assert "3.9500" in text
    assert max(map(len, text.splitlines())) <= 80

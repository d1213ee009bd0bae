"""Training on a terminal: what a dry run foresees, what a run came to, what a merge did to the scores.

In: summaries and forecasts as plain values. Out: text through rich. The supervised tokens of an example are coloured,
two colours in turn so that each is seen; where there is no colour they stand in [[brackets]].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.measure.metrics import perplexity
from fam_engine.report.forecast import duration
from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import gib, number, visible

_COLOURS = ("black on green", "black on cyan")


def print_training_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do.

    Args:
        forecast: The fields of `TrainForecast`.
        console: Where to print.
    """
    for example in forecast["shown"]:
        coloured = console.is_terminal and not console.no_color
        console.print(example_text(example, coloured=coloured), soft_wrap=True)
        console.print()
    examples, tokens = forecast["examples"], forecast["tokens"]
    lines = [
        f"{examples['trained']:,} examples to train on, {examples['validation']:,} to validate"
        + "".join(f", {n:,} {code}" for code, n in examples["quarantined_by_code"].items()),
        *(f"{count:,} flagged {name}" for name, count in forecast["flags"].items()),
        f"an epoch: {tokens['all']:,} tokens, {tokens['supervised']:,} of them supervised; "
        f"{tokens['computed']:,} to compute with shared prompts",
        f"{forecast['steps']:,} steps, {forecast['epochs']:.3g} epochs; "
        f"{forecast['micro_batches']:.1f} micro-batches a step, "
        f"{forecast['max_tokens_per_batch']:,} tokens each at most",
        f"{forecast['num_trainable']:,} parameters trained",
        _memory(forecast),
        *_cards(forecast["cards"]),
        f"about {duration(forecast['seconds'])} (from a trial on this machine"
        + (", by one process)" if forecast["num_processes"] > 1 else ")"),
    ]
    print_lines(lines, console)


def _memory(forecast: Mapping[str, Any]) -> str:
    """Say what training takes, and for what."""
    plan = forecast["memory"]
    each = (
        f" for each of {forecast['num_processes']} processes"
        if forecast["num_processes"] > 1
        else ""
    )
    return (
        f"about {gib(forecast['memory_bytes'])} GiB of memory{each} (estimate): {memory_parts(plan)}; "
        f"{layers_kept(plan)}; {gib(forecast['free_bytes'])} free"
    )


def memory_parts(plan: Mapping[str, Any]) -> str:
    """Say what takes how much of the memory of training.

    Args:
        plan: The fields of a `MemoryPlan`.
    """
    names = ("weights", "scratch", "adapter", "optimizer", "activations")
    return ", ".join(f"{name} {gib(plan[name])}" for name in names)


def layers_kept(plan: Mapping[str, Any]) -> str:
    """Say how many layers keep their activations, of which micro-batch, and where the others' inputs are.

    Args:
        plan: The fields of a `MemoryPlan`.
    """
    text = f"{plan['num_whole']} of {plan['num_layers']} layers keep theirs{_on_host(plan)}"
    if plan["num_whole"] == plan["num_layers"] or plan["max_tokens"] >= plan["num_tokens"]:
        return text
    return f"{text} (of the longest record, {plan['num_tokens']:,} tokens; shorter ones keep more)"


def _cards(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how GPUs of usual sizes would do; nothing of a model that does equally well on all of them."""
    if all(card["fits"] and card["total"] == cards[0]["total"] for card in cards):
        return []
    return ["on an NVIDIA GPU (estimates):", *map(card_line, cards)]


def card_line(card: Mapping[str, Any]) -> str:
    """Say what training would be on a GPU of some size.

    Args:
        card: The fields of a `CardPlan`.
    """
    name = f"  {card['gigabytes']:>2} GB"
    if not card["fits"]:
        return f"{name}: does not fit"
    return (
        f"{name}: {gib(card['total'])} GiB, micro-batches of {card['max_tokens']:,} tokens, "
        f"{card['num_whole']} of {card['num_layers']} layers keep their activations{_on_host(card)}"
    )


def _on_host(plan: Mapping[str, Any]) -> str:
    """Say what inputs of layers take of the host's memory, if they are there."""
    host = plan["host"]
    return f", inputs of the others in {gib(host)} GiB of the host's memory" if host else ""


def example_text(example: Mapping[str, Any], *, coloured: bool) -> Text:
    """Give an example with its supervised tokens marked.

    Args:
        example: `prompt`, and `supervised`: the texts of the tokens.
        coloured: By colour, or by brackets.
    """
    if not coloured:
        supervised = "".join(example["supervised"])
        return Text(f"{visible(example['prompt'])}[[{visible(supervised)}]]")
    text = Text(visible(example["prompt"]), style="dim")
    for place, token in enumerate(example["supervised"]):
        # A style ends at a line's end; the mark keeps a supervised newline visible.
        text.append(visible(token).replace("\n", "\\n\n"), style=f"not dim {_COLOURS[place % 2]}")
    return text


def print_training_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print what a run came to.

    Args:
        summary: What `summary.json` holds.
        console: Where to print.
    """
    training, examples = summary["training"], summary["examples"]
    early = ", stopped early" if training["stopped_early"] else ""
    lines = [
        f"{training['steps']:,} steps, {training['epochs']:.3g} epochs{early}: "
        f"{examples['trained']:,} examples, {training['tokens']:,} supervised tokens, "
        f"{duration(summary['performance']['seconds_training'])}",
        "perplexity of the answers trained on: "
        f"{_perplexity(training['nll_first'])} over the first steps, "
        f"{_perplexity(training['nll_last'])} over the last",
    ]
    if summary["settings"]["loss"] != "plain":
        lines.append(f"mean weight of a token: {training['kept']:.3f}")
    if (validation := summary["validation"]) is not None:
        lines.append(
            f"perplexity of the validation answers: {_perplexity(validation['before'])} before, "
            f"{_perplexity(validation['best'])} with this adapter (step {validation['best_step']})"
        )
    lines += summary["remarks"]
    lines += [f"{n:,} left out: {code}" for code, n in examples["quarantined_by_code"].items()]
    print_lines(lines, console)


def print_merge_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what a merge would write.

    Args:
        forecast: `num_matrices`, `rank`, `base`, `files`, `num_bytes`, `free_bytes`.
        console: Where to print.
    """
    num_files, free = len(forecast["files"]), forecast["free_bytes"]
    room = "" if free is None else f", {gib(free)} are free"
    lines = [
        f"{forecast['num_matrices']:,} matrices of rank {forecast['rank']} into {forecast['base']} weights",
        f"{gib(forecast['num_bytes'])} GiB in {num_files:,} file{'s' if num_files > 1 else ''}{room}",
    ]
    if free is not None and free < forecast["num_bytes"]:
        lines.append("this does not fit on the disk")
    print_lines(lines, console)


def print_merge_scores(scores: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print perplexities before and after a merge.

    Args:
        scores: One mapping a model: `model`, `precision`, `n`, `perplexity`.
        console: Where to print.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for label in ("perplexity (95 % intervals)", "weights", "geometric mean", "token-weighted"):
        table.add_column(label)
    for row in scores:
        averages = (row["perplexity"][name] for name in ("geometric_mean", "token_weighted"))
        table.add_row(row["model"], row["precision"], *map(_estimate, averages))
    console.print(table)


def _estimate(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    shown = "-" if value is None else f"{value:.4f}"
    return shown if low is None or high is None else f"{shown} ({number(low)}-{number(high)})"


def _perplexity(nll: float) -> str:
    return number(perplexity(nll))

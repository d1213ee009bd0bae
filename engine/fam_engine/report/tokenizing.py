"""Tokenized records on a terminal: counts, lengths, packs, and the check against the reference.

In: the summary as plain values. Out: lines, readable at 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import FLAG_MEANINGS, percent, visible

_BAR_WIDTH = 40
_MOST_SHOWN = 160
_WAYS = {
    "global": "best",
    "windowed": "in windows of 10,000",
    "in-order": "in their order",
    "shared-prompts": "with shared prompts",
}


def print_tokenized(summary: Mapping[str, Any], console: Console) -> None:
    """Print what the records come to.

    Args:
        summary: From `jobs.tokenizing.job.run_tokenize`.
        console: Where to print.
    """
    for part in (_forms, _counts, _lengths, _histogram, _packs, _check):
        print_lines(part(summary), console)


def _forms(summary: Mapping[str, Any]) -> Iterator[str]:
    for form in summary["forms"]:
        yield f"{visible(form['file'])}: {form['form']}"
        yield f"  {_clipped(form['context'])}[[{_clipped(form['response'])}]]"


def _counts(summary: Mapping[str, Any]) -> Iterator[str]:
    records, tokens, tokenizer = summary["records"], summary["tokens"], summary["tokenizer"]
    template = "its chat template" if tokenizer["has_template"] else "no template"
    yield (
        f"engine {tokenizer['engine']}, {tokenizer['vocab_size']:,} tokens, {template}, "
        f"boundary {summary['settings']['boundary']}"
    )
    yield f"{records['tokenized']:,} of {records['read']:,} records tokenized"
    yield (
        f"{tokens['prompt']:,} prompt and {tokens['response']:,} response tokens, "
        f"{tokens['end_of_turn']:,} of ends of turns"
    )
    yield (
        f"{summary['response_bytes']:,} bytes of responses, "
        f"{summary['response_tokens_per_byte']:.3f} tokens a byte"
    )
    limit = summary["max_length"]
    if limit is not None:
        long = records["quarantined_by_code"].get("E_TOO_LONG", 0)
        cut = summary["flags"].get("prompt_cut", 0)
        yield f"above {limit:,} tokens: {long:,} left out, {cut:,} with a prompt cut"
    for code, count in records["quarantined_by_code"].items():
        yield f"left out: {count:,} {code}"
    for flag, count in summary["flags"].items():
        yield f"flagged: {count:,} {flag} ({FLAG_MEANINGS.get(flag, 'unusual')})"


def _lengths(summary: Mapping[str, Any]) -> Iterator[str]:
    names = list(summary["lengths"]["record"])
    yield ""
    yield f"{'tokens':9}" + "".join(f"{name:>7}" for name in names)
    for kind, values in summary["lengths"].items():
        yield f"{kind:9}" + "".join(f"{values[name]:>7.0f}" for name in names)
    yield ""


def _histogram(summary: Mapping[str, Any]) -> Iterator[str]:
    """Draw a bar a range of lengths; the last has all that are longer."""
    starts, counts = (summary["histogram"][name] for name in ("start", "count"))
    for start, count in zip(starts, counts, strict=True):
        bar = "#" * round(_BAR_WIDTH * count / max(counts))
        yield f"{start:>7} {bar:{_BAR_WIDTH}} {count:,}"
    yield ""


def _packs(summary: Mapping[str, Any]) -> Iterator[str]:
    packs = summary["packs"]
    yield f"packs of {packs['capacity']:,} tokens:"
    for name, way in packs["ways"].items():
        yield f"  {way['packs']:,} packs, {percent(way['fill'])} full, {_WAYS[name]}"
    if packs["too_long"]:
        yield f"  {packs['too_long']:,} records are longer than a pack"


def _check(summary: Mapping[str, Any]) -> Iterator[str]:
    check = summary["verify"]
    if check is None:
        return
    yield (
        f"{check['num_compared']:,} encodings compared with the reference, "
        f"{check['num_mismatched']:,} differ"
    )
    if check["compared_with_itself"]:
        yield "  (the engine is the reference itself: another copy of it was asked)"
    for found in check["mismatches"]:
        special = "parsed" if found["parse_special"] else "as text"
        place = "as a continuation" if found["continuation"] else "at the start"
        yield (
            f"  {visible(found['file'])}:{found['line']}: {visible(repr(found['text']))} {place}, "
            f"special tokens {special}: {found['ids']}, expected {found['expected_ids']}"
        )
    if check["num_mismatched"]:
        yield "  Differences are our fault; please report these texts."


def _clipped(text: str) -> str:
    shown = text if len(text) <= _MOST_SHOWN else f"{text[:80]} ... {text[-70:]}"
    return visible(shown.replace("\n", "\\n"))

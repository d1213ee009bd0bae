"""Numbers and findings in words, the same in the terminal and in the HTML report.

In: the dictionary `measure.summary.summarize` makes. Out: short strings without markup. A finding
says how sure it is: a source is only called more familiar than another where the interval of their
difference on shared questions leaves out 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from fam_engine.measure.statistics import MIN_GROUPS

MISSING = "-"
# Of values as skewed as perplexities, intervals from fewer questions than this leave out the truth in one case of ten.
FEW_GROUPS = 20
# Sources that a table shows.
MAX_ROWS = 30
# A source that answers fewer of the questions than this is averaged over other questions than the rest.
_MOST_QUESTIONS = 0.9
# Bits a byte that the frequencies of single characters need, measured on worked maths, essays and code: 4.4 to 5.0.
_LETTER_FREQUENCIES = 4.5

AVERAGES = {
    "geometric_mean": "geometric mean",
    "median": "median",
    "mean": "mean",
    "token_weighted": "token-weighted",
}
# What is measured on request.
ON_REQUEST = {"ifd": "IFD", "in_context_perplexity": "perplexity after examples"}
FLAG_MEANINGS = {
    "boundary_merged": "tokenized as one text, prompt and response would share a token",
    "template_altered": "the chat template does not keep the response verbatim",
    "special_in_text": "the text spells a special token; it was read as plain text",
    "prompt_cut": "the prompt was cut from the left to fit the model",
    "first_token_unscored": "nothing stands before the first token, so it has no probability",
    "duplicate_id": "another record has the same id",
    "perplexity_overflow": "the perplexity is too large for a number; nll_mean is there",
}
_KEPT_CONTROLS = "\n\t\u200c\u200d"


def number(value: float | None) -> str:
    """Write about three significant digits."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 99_999.5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Write a share as a percentage."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return MISSING if value is None else f"{100 * value:+.1f}"


def gib(num_bytes: int) -> str:
    """Write bytes in GiB."""
    return f"{num_bytes / 2**30:.2f}"


def interval(estimate: Mapping[str, float | None], *, as_percent: bool = False) -> str:
    """Write an interval as `low to high`, or nothing where there is none."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return ""
    write = percent if as_percent else number
    return f"{write(low)} to {write(high)}"


def unread_rows(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which files of questions some rows could not be compared.

    Args:
        counts: `file`, questions `read` and rows `skipped`; of a file once or more.
    """
    of_file = {one["file"]: one for one in counts if one["skipped"]}
    return [
        f"{one['skipped']:,} of {one['read'] + one['skipped']:,} rows of {visible(name)} hold no question that can be "
        "read, and were not compared."
        for name, one in of_file.items()
    ]


def visible(text: str) -> str:
    """Spell out characters that would act instead of show: controls, direction marks, surrogates.

    Line breaks and tabs stay, and so do the joiners that emoji and some scripts need.
    """
    return "".join(_spelled(c) if unicodedata.category(c)[0] == "C" else c for c in text)


def plain(text: str) -> str:
    """Spell out what would act in Markdown or in the HTML it may hold."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", visible(text)).replace("\n", " ")


def _spelled(character: str) -> str:
    if character in _KEPT_CONTROLS:
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def short_names(names: Sequence[str], most: int, *, mark: str = "\u2026") -> dict[str, str]:
    """Cut names to a width so that different names stay different.

    The end goes where that is enough, else the middle: sources of one study often begin alike. Where neither tells
    them apart, they are numbered.

    Args:
        names: As they are.
        most: Characters that fit; at least 8.
        mark: What stands for what was cut.

    Returns:
        Name -> what to show: one line, with `visible`'s spelling.
    """
    shown = {name: visible(name).replace("\n", "\\n").replace("\t", "\\t") for name in names}
    for num_last in range(0, most // 2 + 1, 2):
        cut = {name: _cut(text, most, num_last, mark) for name, text in shown.items()}
        if len(set(cut.values())) == len(cut):
            return cut
    # Every name has a number of its own, so none can equal another's.
    numbered = {name: f"{mark}{place}" for place, name in enumerate(shown, start=1)}
    return {name: shown[name][: most - len(end)] + end for name, end in numbered.items()}


def _cut(text: str, most: int, num_last: int, mark: str) -> str:
    if len(text) <= most:
        return text
    return text[: most - len(mark) - num_last] + mark + text[len(text) - num_last :]


def by_familiarity(summary: Mapping[str, Any]) -> list[str]:
    """Order the sources by geometric mean perplexity, lowest first, those without scores last."""
    values = {
        name: entry["perplexity"]["geometric_mean"]["value"]
        for name, entry in summary["sources"].items()
    }
    return sorted(values, key=lambda name: (values[name] is None, values[name] or 0.0))


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one sentence what was found."""
    overall = summary["overall"]
    if overall["num_scored"] == 0:
        return "No answer was scored."
    comparison = summary["comparison"]
    if comparison is not None:
        return _compared(summary, comparison)
    name = by_familiarity(summary)[0]
    value = summary["sources"][name]["perplexity"]["geometric_mean"]
    return f"Answers from {name} have a perplexity of {_sure(value)}."


def _compared(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    reference, pairs = comparison["reference"], comparison["pairs"]
    value = summary["sources"][reference]["perplexity"]["geometric_mean"]
    others = "the largest sources" if "pooled" in summary else f"{len(pairs) + 1} sources"
    lead = f"{reference} has the lowest perplexity of {others}, {_sure(value)}"
    of_verdict = {
        verdict: [pair["source"] for pair in pairs if pair["verdict"] == verdict]
        for verdict in {pair["verdict"] for pair in pairs}
    }
    if opposite := of_verdict.get("more familiar"):
        return f"{lead}, yet question by question {listed(opposite)} is more familiar."
    if alike := of_verdict.get("not distinguishable"):
        others = listed(alike)
        return f"{lead}, but on the questions they share it cannot be told apart from {others}."
    if set(of_verdict) == {"less familiar"}:
        return f"{lead}; on the questions they share, every other source is less familiar."
    if "too few questions" in of_verdict:
        return f"{lead}; below {MIN_GROUPS} questions that two share, a difference may be chance."
    return f"{lead}; how far questions and not answers make the difference is open."


def _sure(estimate: Mapping[str, float | None]) -> str:
    limits = interval(estimate)
    return number(estimate["value"]) + (f" (95 % interval {limits})" if limits else "")


def listed(names: Sequence[str], most: int = 4) -> str:
    """Write names as `a, b and c`, at most so many: `a, b and 3 others`."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def confinement(summary: Mapping[str, Any]) -> list[str]:
    """Warn where code was judged that could read the files of the machine."""
    # A summary of an earlier version does not say.
    if summary.get("judging", {}).get("file_access_confined", True):
        return []
    return [
        "File access not confined: this system has no Landlock (Linux 5.13 and later), so code under "
        "test could read this machine's files. It had no network and could write none."
    ]


def on_request(summary: Mapping[str, Any]) -> dict[str, str]:
    """Give what was measured of `ON_REQUEST`."""
    overall = summary["overall"]
    return {name: label for name, label in ON_REQUEST.items() if overall.get(name) is not None}


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Say what the headline leaves open: other averages, texts beyond the model, questions few or not shared."""
    sources = {n: e for n, e in summary["sources"].items() if e["num_scored"]}
    found = taken_together(summary)
    if len(sources) == 1 and len(summary["sources"]) == 1:
        (entry,) = sources.values()
        value = entry["perplexity"]["geometric_mean"]["value"]
        if value is not None:
            found.append(
                f"Roughly, the model gave each token a chance of 1 in {number(value)}. One source "
                "alone says little: score answers of several sources to the same questions."
            )
    elif sources:
        found += _other_averages(summary, sources)
    bits = summary["overall"]["bits_per_byte"]["value"]
    if bits is not None and bits >= _LETTER_FREQUENCIES:
        found.append(
            f"At {number(bits)} bits a byte the model foresees these texts no better than a table of how often each "
            "letter occurs: it hardly knows their kind, so what it finds more familiar says little."
        )
    found += too_few(sources)
    found += _uneven(sources)
    pairs = (summary["comparison"] or {"pairs": []})["pairs"]
    apart = [pair["source"] for pair in pairs if pair["verdict"] == "no shared questions"]
    if apart:
        found.append(
            f"{listed(apart)} and {summary['comparison']['reference']} share no questions, "
            "so a difference may come from the questions."
        )
    return found


def taken_together(summary: Mapping[str, Any]) -> list[str]:
    """Say which sources have no figures of their own, where there are too many."""
    pooled, num_named = summary.get("pooled"), len(summary["sources"])
    if pooled is None:
        return []
    return [
        f"Of {num_named + pooled['num_sources']:,} sources the {num_named} with most records have figures of "
        f"their own; the rest, {pooled['n']:,} of {summary['overall']['n']:,} records, is taken together."
    ]


def too_few(sources: Mapping[str, Any]) -> list[str]:
    """Say which sources have so few questions that their intervals are too narrow."""
    few = [name for name, entry in sources.items() if entry["num_groups"] < FEW_GROUPS]
    if not few:
        return []
    return [f"{listed(few)}: fewer than {FEW_GROUPS} questions, too few to lean on an interval."]


def _uneven(sources: Mapping[str, Any]) -> list[str]:
    """Say where averages by source are over different questions."""
    most = max((entry["num_groups"] for entry in sources.values()), default=0)
    fewer = {
        name: entry["num_groups"]
        for name, entry in sources.items()
        if entry["num_groups"] < _MOST_QUESTIONS * most
    }
    if not fewer:
        return []
    counts = [f"{name} {fewer[name]:,}" for name in sorted(fewer, key=lambda name: fewer[name])]
    return [
        f"Not every source answers the same questions (at most {most:,}; {listed(counts)}), so their averages are "
        "over different ones. The comparison question by question is not affected."
    ]


def _other_averages(summary: Mapping[str, Any], sources: Mapping[str, Any]) -> list[str]:
    """Name the averages by which another source would come first."""
    first = by_familiarity(summary)[0]
    dissent: dict[str, list[str]] = {}
    for average, label in AVERAGES.items():
        values = {n: e["perplexity"][average]["value"] for n, e in sources.items()}
        known = [name for name, value in values.items() if value is not None]
        best = min(known, key=lambda name: values[name], default=first)
        if values[first] is not None and values[best] < values[first]:
            dissent.setdefault(best, []).append(label)
    return [
        f"By the {listed(labels)} perplexity {name} comes first."
        for name, labels in dissent.items()
    ]

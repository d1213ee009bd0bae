"""Whether a candidate may take the place of the answer it was made from.

In: what the model wrote and how it ended, the record's reference. Out: a `Check`. The order is cheapest first, and a
candidate has one reason, the first that applies: its text is not whole, says nothing, repeats the given answer it was
shown, gives a result without the working that was asked for, speaks of having been shown an answer, or gives another
final one.
"""

from __future__ import annotations

from dataclasses import dataclass

from fam_engine.errors import UsageError
from fam_engine.jobs.references import Reference, is_bare
from fam_engine.measure.answers import mentions_reference

VERIFIED = "verified"
# Why a record falls back that no candidate was made for.
NO_REFERENCE = "no_reference"
# The reasons of a text that is whole, and no more wrong than that it may be worth changing.
WHOLE_BUT_WRONG = ("no_final_answer", "wrong_answer", "mentions_reference")
# What the model's text may end with and still be whole.
_WHOLE = ("eos", "stop")


@dataclass(frozen=True)
class Check:
    """What became of a candidate.

    Attributes:
        reason: `verified`, or why not: `prompt` (it could not be asked, or is too long), `crash`, `length`,
            `nonfinite`, `empty`, `copy`, `bare`, `mentions_reference`, `no_final_answer`,
            `wrong_answer`, `unjudged`.
        detail: The same in words, for a log.
        extracted: Its final answer, as far as it was read.
    """

    reason: str
    detail: str
    extracted: str | None = None

    @property
    def is_verified(self) -> bool:
        """Whether it may be used."""
        return self.reason == VERIFIED


def check_candidate(
    text: str,
    finish_reason: str,
    reference: Reference,
    *,
    shown: str | None = None,
    with_working: bool = False,
) -> Check:
    """Check a candidate.

    Args:
        text: What the model wrote, white space around it taken off.
        finish_reason: How it ended.
        reference: What it must agree with.
        shown: The given answer where its prompt showed it; None where it did not.
        with_working: Whether it must be more than a final answer. Code is its own working.
    """
    if finish_reason not in _WHOLE:
        return Check(finish_reason, f"the text ended by {finish_reason}")
    if not text:
        return Check("empty", "no text")
    if shown is not None and text.split() == shown.split():
        return Check("copy", "the given answer, word for word")
    if with_working and reference.kind != "code" and is_bare(text):
        return Check("bare", "a final answer without its working")
    if mention := mentions_reference(text):
        return Check("mentions_reference", f"says `{mention}`")
    try:
        verdict = reference.judge(text)
    except UsageError as error:  # only a verifier that is not installed could tell
        return Check("unjudged", error.message)
    if verdict.correct:
        return Check(VERIFIED, verdict.reason, verdict.extracted)
    if verdict.correct is None:
        return Check("unjudged", verdict.reason)
    reason = "no_final_answer" if verdict.extracted is None else "wrong_answer"
    return Check(reason, verdict.reason, verdict.extracted)

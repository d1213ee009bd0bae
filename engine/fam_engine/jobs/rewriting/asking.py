"""What the model is asked in each attempt at a record, and how it chooses its words.

In: a method, its template, a record. Out: prompt ids, a seed, a `Sampling`. The first attempt is greedy: what the model
finds likeliest word by word is what is most its own, and the yield at one attempt has no chance in it. Later attempts,
for what still lacks a verified text, are drawn at the temperature asked for.

`minimum-change` begins with the model's own answer (attempt 0, greedy, the record's plain prompt), which stays if it is
right. The changes are attempts 1 to K, the first of them greedy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from fam_engine._rust_tokenize import TokenizerError
from fam_engine.config import RewriteConfig, RewriteMethod
from fam_engine.data.tokenizer import Ids, TextEncoder
from fam_engine.data.turns import Message
from fam_engine.errors import RecordError
from fam_engine.jobs.generation.ingest import record_seed
from fam_engine.jobs.references import is_bare
from fam_engine.jobs.rewriting.ingest import Source
from fam_engine.jobs.rewriting.prompts import PromptTemplate, question_text
from fam_engine.jobs.running import sampling_of
from fam_engine.model.generation.requests import Sampling

Working = Literal["always", "as before", "never"]
# A model that answers for itself may be as short as it likes.
_WORKING: Final[dict[RewriteMethod, Working]] = {
    "rewrite": "as before",
    "answer": "never",
    "explain": "always",
    "minimum-change": "as before",
}


@dataclass(frozen=True)
class Attempt:
    """One of the attempts a method makes.

    Attributes:
        number: From 0.
        template: What is asked; None: the record's own prompt as it is.
        sampling: How words are chosen.
        changes_own: Whether it changes the text of attempt 0.
        shows_response: Whether the prompt shows the given answer.
        working: Whether a text must show how its final answer is reached: `always`, `as before` (if
            the text it restates or changes does) or `never`.
    """

    number: int
    template: PromptTemplate | None
    sampling: Sampling
    changes_own: bool
    shows_response: bool
    working: Working

    def wants_working(self, before: str) -> bool:
        """Whether what is made of this text must be more than a final answer."""
        return self.working == "always" or (self.working == "as before" and not is_bare(before))


def plan_attempts(config: RewriteConfig, template: PromptTemplate | None) -> list[Attempt]:
    """Give the attempts of a job, in order.

    Raises:
        UsageError: A sampling value out of range.
    """
    first_of_method = 1 if config.method == "minimum-change" else 0
    attempts = [_attempt(config, None, 0, is_greedy=True)] if first_of_method else []
    return attempts + [
        _attempt(config, template, number, is_greedy=number == first_of_method)
        for number in range(first_of_method, first_of_method + config.samples)
    ]


def _attempt(
    config: RewriteConfig, template: PromptTemplate | None, number: int, *, is_greedy: bool
) -> Attempt:
    places = template.places if template else frozenset[str]()
    sampling = sampling_of(config, template.stops if template else ())
    return Attempt(
        number=number,
        template=template,
        sampling=replace(sampling, temperature=0.0) if is_greedy else sampling,
        changes_own="attempt" in places,
        shows_response="response" in places,
        working=_WORKING[config.method if template else "answer"],
    )


def prompt_ids(encoder: TextEncoder, attempt: Attempt, source: Source, own_text: str | None) -> Ids:
    """Give the ids of a prompt.

    Args:
        encoder: Text to ids.
        attempt: Which.
        source: The record.
        own_text: The model's first answer, where the attempt changes it.

    Raises:
        RecordError: The template would not render it, or the tokenizer not read it.
    """
    context, verbatim = source.context, source.verbatim
    if attempt.template is not None:
        text = attempt.template.fill(_values(source, own_text))
        context, verbatim = (Message("user", text.strip()),), text
    try:
        return encoder.encode_context(context, verbatim, source.told)
    except TokenizerError as error:
        raise RecordError("E_TOKENIZE", f"the tokenizer failed: {error}") from None


def _values(source: Source, own_text: str | None) -> dict[str, str]:
    assert source.reference is not None, "nothing is asked where nothing can be verified"
    return {
        "question": question_text(source.context),
        "response": source.response,
        # Of code the program is all the answer there is.
        "answer": source.reference.answer or source.response,
        "attempt": own_text or "",
    }


def attempt_seed(seed: int, method: RewriteMethod, number: int, name: str | None, ids: Ids) -> int:
    """Give the seed of an attempt at a record: from the run's seed, the record's own id and the prompt."""
    return record_seed(seed, f"{method} {number} {name}", ids)

"""Answers: reading the final answer out of a response, and judging it.

What may come in here: extractors, comparisons, verifiers and the child processes some of them need. `judge` is the
one way in, `mentions_reference` the check of rewrites beside it. No torch; nothing here evaluates a response's text in
our own process: code and symbolic maths are looked at in locked-down children (`confined`).
"""

from fam_engine.measure.answers.judging import TaskKind, Verdict, guess_kind, judge
from fam_engine.measure.answers.leaks import mentions_reference

__all__ = ["TaskKind", "Verdict", "guess_kind", "judge", "mentions_reference"]

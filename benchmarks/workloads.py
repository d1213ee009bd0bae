"""The fixed workloads: G1, G8 and L8 to score, documents to train on.

In: a workload's name and how many questions or tokens. Out: token ids, the same for every engine. Lengths are those of
real GSM8K records, or drawn from a stated distribution; ids are random, which changes nothing about speed: every
engine does the same arithmetic on any ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """One prompt and its answers, as token ids."""

    prompt: np.ndarray
    answers: list[np.ndarray]


def make_workload(name: str, num_questions: int, vocab_size: int) -> list[Question]:
    """Make a workload: `G1`, `G8` (GSM8K lengths, 1 or 8 answers) or `L8` (600 + 8 x 150)."""
    rng = np.random.default_rng(0)
    lengths = json.loads((HERE / "gsm8k_lengths.json").read_text())
    prompts, answers = lengths["prompt"], lengths["answer"]
    num_answers = int(name[1:])
    questions = []
    for index in range(num_questions):
        long = name.startswith("L")
        prompt = 600 if long else prompts[index % len(prompts)]
        sizes = [
            150 if long else answers[(index + 16 * step) % len(answers)]
            for step in range(num_answers)
        ]
        questions.append(
            Question(
                rng.integers(0, vocab_size, prompt, dtype=np.int32),
                [rng.integers(0, vocab_size, size, dtype=np.int32) for size in sizes],
            )
        )
    return questions


def count_tokens(questions: list[Question]) -> dict[str, int]:
    """Count what an engine without sharing would compute, and the answers alone."""
    answers = sum(len(answer) for question in questions for answer in question.answers)
    prompts = sum(len(question.prompt) * len(question.answers) for question in questions)
    return {"effective": prompts + answers, "answer": answers}


def make_documents(name: str, num_tokens: int, vocab_size: int, *, seed: int = 0) -> list[Question]:
    """Make documents to train on, as questions with one answer, of exactly so many tokens in all.

    Args:
        name: `blocks`: as many documents of 2,048 tokens as fit, all but the first token answered: nothing to pad,
            kernels alone are compared. `documents`: lengths log-normal (median 300, 95 % below 1,500), a third of
            each the prompt.
        num_tokens: In all; the last document takes what is left.
        vocab_size: Ids follow Zipf's law (1 / (rank + 10)) below this, so there is something to learn.
        seed: Of lengths and ids.
    """
    rng = np.random.default_rng(seed)
    odds = 1 / (np.arange(vocab_size - 3) + 10.0)
    questions = []
    while num_tokens:
        length = (
            2048 if name == "blocks" else int(np.clip(rng.lognormal(np.log(300), 0.98), 8, 8192))
        )
        # Two tokens at least are left for the next one, or none.
        length = num_tokens if num_tokens - length < 2 else length
        num_prompt = 1 if name == "blocks" else max(1, length // 3)
        ids = (3 + rng.choice(vocab_size - 3, length, p=odds / odds.sum())).astype(np.int32)
        questions.append(Question(ids[:num_prompt], [ids[num_prompt:]]))
        num_tokens -= length
    return questions

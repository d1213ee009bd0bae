"""Extractors on real answers: what people and models wrote, with known verdicts or known counts."""

from __future__ import annotations

import collections
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fam_engine.measure.answers import guess_kind, judge, mentions_reference
from fam_engine.measure.answers.final_answers import stated_answer


def read(file: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_gsm8k_gold_answers(shared: Path) -> None:
    for name in ("train", "test"):
        for row in read(shared / "data" / "gsm8k" / f"{name}.jsonl")[::4]:
            gold = row["answer"].split("####")[1].strip()
            assert judge(row["answer"], kind="math", answer=gold).correct is True, row
            assert guess_kind(row["answer"], (), ()) == guess_kind(gold, (), ()) == "math"


def test_verdicts_of_the_gsm8k_authors(shared: Path) -> None:
    """5,276 solutions of four models, each with the verdict of those who published them."""
    for row in read(shared / "data" / "gsm8k" / "example_model_solutions.jsonl"):
        gold = row["ground_truth"].split("A: ")[-1]
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            verdict = judge(row[model]["solution"], kind="math", answer=gold)
            assert verdict.correct is row[model]["is_correct"], (row[model], verdict)


def test_math_gold_answers(shared: Path) -> None:
    for row in read(shared / "data" / "math" / "test.jsonl.gz"):
        statement = stated_answer(row["solution"])
        assert statement is not None, row
        assert statement.boxed
        assert judge(row["solution"], kind="math", answer=statement.text).correct is True, row


# Right answers among 1,000: the research notes' counts (GSM8K 93.5, 96.5, 90.6 %; MATH 82.0, 89.8 %) were made by a
# cruder reader against gold numbers of which eight in GSM8K were cut at a comma (`1,080` became 1).
@pytest.mark.parametrize(
    ("task", "variant", "right"),
    [
        ("gsm8k", "groundtruth", 992),
        ("gsm8k", "openai_gpt4_data", 926),
        ("gsm8k", "anthropic_Claud", 957),
        ("gsm8k", "anthropic_openai_mini_gpt4", 898),
        ("math", "groundtruth", 1000),
        ("math", "openai_gpt4_data", 822),
        ("math", "anthropic_Claud", 901),
        ("ecqa", "groundtruth", 1000),
        ("ecqa", "anthropic_Claud", 953),
        ("ecqa", "openai_gpt4_data", 969),
    ],
)
def test_variants(shared: Path, task: str, variant: str, right: int) -> None:
    if task == "math":
        pytest.importorskip("math_verify")
    found: collections.Counter[bool | None] = collections.Counter()
    for row in read(shared / "data" / "ilb_variants" / f"{task}.jsonl.gz"):
        choices = re.findall(r"\(\d\): (.*)", row["original_question"]) if task == "ecqa" else ()
        kind = guess_kind(row["gold"], choices, ())
        found[
            judge(row["responses"][variant], kind=kind, answer=row["gold"], choices=choices).correct
        ] += 1
    assert found == {True: right, False: 1000 - right} or found == {True: 1000}


def test_answers_by_people_mention_no_reference(shared: Path) -> None:
    for file, field in (
        ("gsm8k/train.jsonl", "answer"),
        ("math/test.jsonl.gz", "solution"),
        ("ecqa/test.jsonl.gz", "taskB"),
    ):
        for row in read(shared / "data" / file)[::4]:
            assert mentions_reference(row[field]) is None, row


def test_rewrites_that_talk_of_the_reference(shared: Path) -> None:
    file = shared / "data" / "ilb_variants" / "selfrewrite__ecqa__llama_Self_Distillation.jsonl.gz"
    flagged = [row for row in read(file) if mentions_reference(row["answer"])]
    assert len(flagged) == 468
    assert all("reference answer" in row["answer"].lower() for row in flagged)


@pytest.mark.parametrize("place", range(0, 974, 140))
def test_mbpp_reference_solutions_pass(shared: Path, place: int) -> None:
    row = read(shared / "data" / "mbpp" / "mbpp.jsonl")[place]
    setup = [row["test_setup_code"]] if row["test_setup_code"] else []
    verdict = judge(row["code"], kind="code", answer=None, tests=setup + row["test_list"])
    assert verdict.correct is True, verdict


@pytest.mark.parametrize("place", [10, 32, 38, 50, 115, 163])
def test_humaneval_reference_solutions_pass(shared: Path, place: int) -> None:
    row = read(shared / "data" / "humaneval" / "HumanEval.jsonl.gz")[place]
    response = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
    tests = [f"{row['test']}\ncheck({row['entry_point']})"]
    verdict = judge(response, kind="code", answer=None, tests=tests)
    assert verdict.correct is True, verdict
    broken = response.replace(row["canonical_solution"], "    return None\n")
    assert judge(broken, kind="code", answer=None, tests=tests).correct is False

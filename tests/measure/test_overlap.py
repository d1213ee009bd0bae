"""Test questions among training questions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fam_engine.measure.overlap import (
    find_overlap,
    normalised_words,
    run_fingerprints,
    words_and_signs,
)

LONG = " ".join(f"word{i}" for i in range(45))


def test_same_words_are_the_same_question() -> None:
    overlap = find_overlap(
        ["What is 2 + 2?", LONG], ["what is 2+2", "What is 2 + 3?", LONG.upper() + "!", "", "?"]
    )
    assert (overlap.num_test, overlap.same, overlap.similar, overlap.count) == (5, (0, 2), (), 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('A well-known man, he said: "Go!"', "a well known man he said go"),
        ("It\u2019s 7\u22125.", "it's 7 \u2013 5"),
        ("Solve $x^2$.", r"solve \(x^{2}\)"),
        ("x² + 1", "x^2+1"),
        ("3½ cups", "3 1/2 cups"),
        ("Fill in ____ now", "fill in: now"),
        ("\uff11\uff0b\uff11\uff1d\uff1f", "1+1=?"),
        ("小明有3个苹果。", "小明有 3 个苹果"),
        ("5 सेब और मोहन।", "5 सेब और मोहन"),
    ],
)
def test_case_punctuation_and_notation_do_not_make_another_question(one: str, other: str) -> None:
    assert words_and_signs(one) == words_and_signs(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7 - 5", "7 + 5"),
        ("Compute cos(-150°)", "Compute cos 150°"),
        ("x^8 + 98x^4 + 1", "x^8 \u2212 98x^4 + 1"),
        ("Find k < 0", "find k > 0"),
        ("x-y", "x y"),
        ("x != 5", "x = 5"),
        (r"\sqrt{x+1}", r"\sqrt{x}+1"),
        ("2^{x+1}", "2^x+1"),
        ("[1,2)", "(1,2)"),
        ("f'(x)", "f(x)"),
        ("a_1", "a 1"),
        ("5!", "5"),
        ("(n-1)! x_n!", "(n-1) x_n"),
        ("1.5", "1,5"),
        ("add .5", "add 5"),
        ("1...5", "1.5"),
        ("3:4", "3 4"),
        ("5%", "5"),
        ("2·3", "2 3"),
        ("€5", "£5"),
        ("10²", "102"),
        ("10₂", "102"),
        ("3½", "31/2"),
        ("मोहन की", "मोहन का"),
        ("๑๕", "๑ ๕"),
    ],
)
def test_a_sign_or_a_mark_makes_another_question(one: str, other: str) -> None:
    assert words_and_signs(one) != words_and_signs(other)
    assert find_overlap([one], [other]).count == 0


def test_another_sign_in_a_long_question_leaves_it_similar() -> None:
    overlap = find_overlap([f"{LONG} -5"], [f"{LONG} 5", f"{LONG} -5"])
    assert (overlap.same, overlap.similar) == ((1,), (0,))


def test_text_without_spaces_is_compared_letter_by_letter() -> None:
    text = "小明有三个苹果\uff0c他又买了五个苹果\uff0c然后送给小红两个苹果\uff0c请问小明现在一共还剩下多少个苹果\uff1f"
    overlap = find_overlap([text], [f"{text}谢谢。", text[::-1], text.replace("\uff0c", " ")])
    assert (overlap.same, overlap.similar) == ((2,), (0,))
    assert normalised_words("5个ที่นี่") == ["5", "个", "ที่", "นี่"]


def test_a_changed_word_in_a_long_question_is_found() -> None:
    changed = LONG.replace("word22", "other")
    half = " ".join(LONG.split()[:22] + [f"new{i}" for i in range(23)])
    overlap = find_overlap([LONG], [changed, half, f"Please answer. {LONG}"])
    assert (overlap.same, overlap.similar) == ((), (0, 2))


def test_nothing_to_compare() -> None:
    assert find_overlap([], [LONG, "short"]).count == 0
    assert find_overlap(["", "?"], [LONG, ""]).count == 0
    assert find_overlap([LONG], []).num_test == 0


def test_fingerprints_do_not_depend_on_the_process() -> None:
    runs = run_fingerprints(normalised_words(LONG))
    assert runs.dtype == np.uint64
    assert len(runs) == 45 - 13 + 1
    assert int(runs[0]) == 18350848143127519196
    assert len(run_fingerprints(["a"] * 12)) == 0


def questions(file: Path) -> list[str]:
    if file.suffix == ".json":
        return [row["question"] for row in json.loads(file.read_text())]
    return [json.loads(line)["question"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("task", "suffix", "count"), [("boolq", "json", 1000), ("gsm8k", "jsonl", 0)]
)
def test_known_data(shared: Path, task: str, suffix: str, count: int) -> None:
    folder = shared / "data" / task
    overlap = find_overlap(
        questions(folder / f"train.{suffix}"), questions(folder / f"test.{suffix}")
    )
    assert overlap.count == len(overlap.same) == count


def test_known_questions_that_differ_by_a_sign(shared: Path) -> None:
    """Of MATH's test, ten are in its training set by their words, four by what they ask."""
    train, test = (
        [json.loads(line)["problem"] for line in gzip.decompress(file.read_bytes()).splitlines()]
        for file in (shared / f"data/math/{name}.jsonl.gz" for name in ("train", "test"))
    )
    overlap = find_overlap(train, test)
    assert (len(overlap.same), len(overlap.similar)) == (4, 114)

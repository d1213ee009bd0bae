from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from fam_engine.config import RewriteMethod
from fam_engine.data.turns import Message
from fam_engine.errors import UsageError
from fam_engine.jobs.rewriting.prompts import TEMPLATES, load_prompt, question_text


@pytest.mark.parametrize("method", get_args(RewriteMethod))
def test_each_method_has_its_template_in_the_package(method: RewriteMethod) -> None:
    template = load_prompt(method, None)
    if method == "answer":  # asked with the record's own prompt
        assert template is None
        return
    assert template is not None
    assert (TEMPLATES / f"{method}.txt").is_file()
    values = dict.fromkeys(template.places, "THE-VALUE")
    filled = template.fill(values)
    assert filled.count("THE-VALUE") == len(template.places)
    assert "{{" not in filled
    # The model goes on below a heading, and ends its text before the next example.
    last = filled.rstrip("\n").rsplit("\n", 1)[-1]
    assert last in template.stops
    assert "[Question]" in template.stops


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    return file


def test_what_a_value_says_is_no_place(tmp_path: Path) -> None:
    template = load_prompt("rewrite", write(tmp_path, "{{question}}\n{{ response }}"))
    assert template is not None
    assert template.fill({"question": "is {{response}} TeX?", "response": r" \frac{{a}}{b} "}) == (
        "is {{response}} TeX?\n" + r"\frac{{a}}{b}" + "\n"
    )


@pytest.mark.parametrize(
    ("method", "text", "line", "named"),
    [
        ("rewrite", "a\n{{question}}\n{{respnse}}", 3, "did you mean `response`"),
        ("rewrite", "{{question}} {{response}}\n{{attempt}}", 2, "`attempt`"),
        # Whoever answers directly, or explains, is shown no worked answer.
        ("answer", "{{question}}\n\n{{answer}}", 3, "method answer has question"),
        ("explain", "{{question}} {{answer}} {{response}}", 1, "`response`"),
        ("rewrite", "{{question}}\n{{response", 2, "without `}}`"),
    ],
)
def test_a_place_that_is_not_there_is_refused_by_line(
    tmp_path: Path, method: RewriteMethod, text: str, line: int, named: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_prompt(method, file)
    assert error.value.where == f"{file}:{line}"
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("method", "text", "missing"),
    [
        ("rewrite", "{{question}}", "{{response}}"),
        ("explain", "{{question}}", "{{answer}}"),
        ("minimum-change", "{{question}} {{response}}", "{{attempt}}"),
        ("answer", "", "{{question}}"),
    ],
)
def test_a_template_without_what_its_method_needs_is_refused(
    tmp_path: Path, method: RewriteMethod, text: str, missing: str
) -> None:
    with pytest.raises(UsageError, match="E_PROMPT_PLACE") as error:
        load_prompt(method, write(tmp_path, text))
    assert missing in str(error.value)


def test_a_file_that_does_not_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    with pytest.raises(UsageError, match="E_PROMPT_FILE"):
        load_prompt("rewrite", file)
    file.write_bytes(b"\xff\xfe{{question}}")
    with pytest.raises(UsageError, match="E_PROMPT_FILE"):
        load_prompt("rewrite", file)


def test_a_conversation_is_one_question() -> None:
    assert question_text([Message("user", "Why?")]) == "Why?"
    turns = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello")]
    assert question_text([*turns, Message("user", "Why?")]) == (
        "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: Why?"
    )

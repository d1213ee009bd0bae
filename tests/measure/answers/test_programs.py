"""Which part of a response is the program."""

from __future__ import annotations

import pytest

from fam_engine.measure.answers.programs import extract_program

ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "response",
    [
        f"```python\n{ADD}```",
        f"Here:\n\n```\n{ADD}```\nIt adds.",
        f"~~~py\n{ADD}~~~",
        f"```python\n{ADD}",  # cut off
        f"First:\n```bash\npip install x\n```\nthen\n```python\n{ADD}```",
        f"```python\n{ADD}```\nUse it:\n```python\nprint(add(1, 2), input())\n```",
        "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```",
        f"Final Answer:\n{ADD}",
        f"FINAL_ANSWER:\n{ADD}",
        ADD,
        ADD.replace("\n", "\r\n"),
        f"Sure, here it is!\n\n{ADD}\nThis adds two numbers.",
        f"Here's the final answer:\n\n{ADD}\nFinal Answer:",
        f"```python\ndef add(a, b): pass\n\nFinal Answer:\n{ADD}```",
        # A line of one name is prose, though it parses.
        f"[BEGIN]\n{ADD}[DONE]",
        f"```python\n[BEGIN]\n{ADD}[DONE]\n```",
        f"{ADD}Done",
        f"{ADD}\rDone",
        f"Solution\n\n{ADD}",
        f"{ADD}\nExplanation\nThis adds two numbers.",
    ],
)
def test_the_program_is_found(response: str) -> None:
    program = extract_program(response)
    assert program is not None
    assert program.strip() == ADD.strip()


def test_helpers_and_corrections_come_together() -> None:
    response = f"```python\ndef one():\n    return 1\n```\nand\n```python\n{ADD}```"
    program = extract_program(response)
    assert program is not None
    assert "def one" in program
    assert "def add" in program


@pytest.mark.parametrize(
    "block",
    [
        "import math",
        "from math import sqrt\n",
        "MOD = 10**9 + 7\nINF: float = float('inf')",
        "x, y = [], {}",
    ],
)
def test_blocks_of_imports_and_constants_come_along(block: str) -> None:
    fenced = f"```python\n{block}\n```"
    for response in (f"{fenced}\n```python\n{ADD}```", f"```python\n{ADD}```\n{fenced}"):
        program = extract_program(response)
        assert program is not None
        assert block.strip() in program
        assert ADD in program
        assert (program.index(block.strip()) < program.index(ADD)) is response.startswith(fenced)


@pytest.mark.parametrize(
    "block",
    [
        "x = add(1, 2)",
        "x = int(input())",
        "from solution import add",
        "add = None",
        "import os\nprint(1)",
        "# so",
    ],
)
def test_examples_of_use_stay_out(block: str) -> None:
    assert extract_program(f"```python\n{ADD}```\n```python\n{block}\n```") == ADD


def test_a_named_lambda_is_a_definition() -> None:
    assert extract_program("Final Answer:\nclear = lambda t: ()\n") == "clear = lambda t: ()\n"


def test_nothing_to_run() -> None:
    assert extract_program("") is None
    assert extract_program("x" * 200_000) is None
    assert extract_program("I cannot.") == "I cannot."  # it will not load, and the verdict says so


@pytest.mark.parametrize(
    "text", ["(" * 50000, "-" * 50000 + "1", "a." * 20000, "\0", "\ud800", "[" * 99, "9**9**9**9"]
)
def test_hostile_text_does_not_stop_the_parser(text: str) -> None:
    extract_program(text)
    extract_program(f"```python\n{text}\n```")

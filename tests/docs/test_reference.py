"""What the site's reference is made of: nothing is missing from it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from docs.check_site import faults
from docs.generators import benchmarks, commands, errors, files
from docs.generators.notebook import page as notebook_page

from fam_engine.jobs.schemas import SETTINGS, settings_schema

ROOT = Path(__file__).parents[2]


def test_every_code_is_in_a_table_and_says_something() -> None:
    python = {
        node.value
        for folder in errors.SOURCES
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and errors.CODE.fullmatch(str(node.value))
    }
    rust = "".join(
        f.read_text(encoding="utf-8") for f in (ROOT / "rust_tokenize/src").rglob("*.rs")
    )
    tables = errors.error_codes() + errors.record_codes()
    listed = dict(re.findall(r"^\| `(E_\w+)` \|(.*)\|$", tables, re.M))
    assert set(listed) == python | set(re.findall(r'"(E_JSON_\w+)"', rust))
    assert not [code for code, rest in listed.items() if not rest.rpartition("|")[2].strip()]


def test_every_exit_code_is_listed() -> None:
    kinds = {kind.exit_code for kind in errors.KINDS.values()}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", errors.exit_codes(), re.M)}
    assert listed == kinds | set(errors.OTHER_EXITS)


def test_a_message_is_shown_without_what_was_found() -> None:
    module = ast.parse(
        "def f(x):\n    message = f'is {x!r}, expected 1'\n    raise UsageError(message, code='E_X')\n"
    )
    assert list(errors.raised_in(module)) == [
        errors.Raised("E_X", "UsageError", "is ..., expected 1")
    ]


def test_every_flag_and_every_setting_is_there() -> None:
    page = commands.commands_page()
    for name, command in commands.commands().items():
        section = page.split(f"## `{name}`\n")[1].split("\n## ")[0]
        flags = {flag for given in command.params for flag in given.opts if flag != "--help"}
        assert {f for f in flags if f.startswith("--")} <= set(re.findall(r"`(--[\w-]+)`", section))
        assert f"fam-engine {name}" in section.split("```")[1]
    settings = commands.settings_page()
    for name in SETTINGS.keys() - {"experiment"}:
        section = settings.split(f"## `{name}`\n")[1].split("\n## ")[0]
        listed = re.findall(r"^\| `(\w+)` \|", section, re.M)
        assert listed == list(settings_schema(name)["properties"])


def test_tables_of_benchmarks_hold_every_row() -> None:
    for name in ("tokenize_cpu", "tokenize_cpu_2_threads"):
        rows = json.loads((benchmarks.RESULTS / f"{name}.json").read_text())["results"]
        table = benchmarks.tokenize(name).split("\n\n")[0].splitlines()
        assert len(table) == len(rows) + 2
        assert f"{rows[0]['engines']['fam-engine']['warm']:.0f} (" in table[2]
    assert benchmarks.packing().count("fam-engine") > 10
    assert benchmarks.lm_eval().count("batch size") == 2
    assert "| L8 | nf4 | 1,007 | 355 | 2.84 |" in benchmarks.score()


def test_every_table_that_is_written_has_its_columns_listed() -> None:
    page = files.columns()
    assert page.count("### ") == len(files.TABLES)
    assert "| `token_ids` | list of int32 |" in page


def test_the_notebooks_page_has_its_outputs() -> None:
    assert notebook_page().count("```text\n") == 3


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#x">b</a>', "no such anchor"),
        ('<a href="c.html">c</a>', "is not there"),
        ('<script src="https://elsewhere.example/x.js"></script>', "fetches"),
        ('<a href="b.html#here">b</a><a href="https://elsewhere.example">e</a>', None),
    ],
)
def test_faults_of_a_site_are_found(tmp_path: Path, body: str, fault: str | None) -> None:
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    found, _ = faults(tmp_path)
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]

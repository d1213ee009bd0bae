"""What a package says of itself: the modules it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine" / "fam_engine"
PACKAGES = sorted(path.parent for path in ENGINE.rglob("__init__.py"))


def missing(package: Path) -> list[str]:
    """Give the names that may be modules, lower-case words in backticks, of which nothing is there."""
    module = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    names = re.findall(r"`([a-z][a-z0-9_]*)/?`", ast.get_docstring(module) or "")
    return [name for name in names if not is_there(name, package)]


def is_there(name: str, package: Path) -> bool:
    """Whether it is in the package or a folder around it, or defined by a module of the package."""
    around = [folder for folder in package.parents if folder.is_relative_to(ROOT)]
    if any(
        (folder / end).exists() for folder in (package, *around) for end in (name, f"{name}.py")
    ):
        return True
    definition = re.compile(rf"^(def|class) {name}\b", re.MULTILINE)
    return any(definition.search(file.read_text(encoding="utf-8")) for file in package.glob("*.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_modules_it_names_are_there(package: Path) -> None:
    assert missing(package) == []


def test_a_module_that_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""Has `a`, `b/`, `f` and `c` (not `d e` or `x.y`)."""')
    (tmp_path / "a.py").write_text("def f(): ...\n")
    (tmp_path / "b").mkdir()
    assert missing(tmp_path) == ["c"]

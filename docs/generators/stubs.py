"""The reference of `Tokenizer`, which is written in Rust, from the typed face of the extension.

In: `_rust_tokenize.pyi`, as a syntax tree (stubtest holds it against the extension). Out: reStructuredText of Sphinx's
Python domain.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

STUB = Path(__file__).parents[2] / "engine" / "fam_engine" / "_rust_tokenize.pyi"


def tokenizer() -> str:
    """Give the class with its methods and properties."""
    module = ast.parse(STUB.read_text(encoding="utf-8"))
    (kind,) = (n for n in module.body if isinstance(n, ast.ClassDef) and n.name == "Tokenizer")
    members = "\n".join(
        textwrap.indent(member, "   ")
        for node in kind.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        for member in _member(node)
    )
    return f".. py:class:: Tokenizer\n\n   {ast.get_docstring(kind)}\n\n{members}"


def _member(node: ast.FunctionDef) -> Iterator[str]:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    text = textwrap.indent(
        "\n".join(GoogleDocstring(ast.get_docstring(node) or "", Config()).lines()), "   "
    )
    result = ast.unparse(node.returns) if node.returns else "None"
    if "property" in decorators:
        yield f".. py:property:: {node.name}\n   :type: {result}\n\n{text}\n"
        return
    signature = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    directive = "py:staticmethod" if "staticmethod" in decorators else "py:method"
    yield f".. {directive}:: {node.name}({signature}) -> {result}\n\n{text}\n"

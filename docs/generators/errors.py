"""The tables of exit codes and error codes, read from the source.

In: the modules of the package, as syntax trees; nothing is imported but the classes of errors. Out: Markdown tables. A
code is met where an error is raised: its class says how the command ends, its first argument what it says, with `...`
for what was found. A code that is only handed on (`code=CODE`) is listed with the class of the function that raises.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fam_engine import errors

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "engine" / "fam_engine", ROOT / "cli")
KINDS = {kind.__name__: kind for kind in errors.FamEngineError.__subclasses__()}
CODE = re.compile(r"E_[A-Z0-9_]+")
# Those without a class of their own.
OTHER_EXITS = {
    0: "done",
    1: "our fault: please report it with the output of the same command with `--debug`; or `tokenize --verify` found a "
    "difference",
    3: "done, some records quarantined",
    11: "`bench --compare`: slower than before",
    130: "interrupted by Ctrl-C; the same command goes on from there, or starts over, as it says",
    141: "whatever read standard output has ended before it was printed, as in `... | head -1`; a job prints there "
    "when its files are written",
    143: "interrupted by SIGTERM; the same command goes on from there, or starts over, as it says",
}
# Said by a function that the code is handed to: the class of the error, and the gist of it.
HANDED_ON = {
    "E_DIVERGED": (
        "DivergedError",
        "the loss, the gradient or a parameter is not finite, or the loss runs away",
    ),
    "E_MODEL_CONFIG": (
        "ModelRefusedError",
        "`config.json`: a field is missing, of another kind, or not understood",
    ),
    "E_PEER": (
        "DeviceError",
        "another process of a training run has ended",
    ),
    "E_TEMPLATE_FILE": (
        "UsageError",
        "cannot be read as a template: ...",
    ),
    "E_TOKENIZER_CONFIG": (
        "ModelRefusedError",
        "`tokenizer_config.json`: a field is of another kind",
    ),
}
# Of single records, said in Rust or where no error is raised.
OF_RECORDS = {
    "E_CRASH": "the process died each time this record was computed",
    "E_JSON": "the line is not JSON",
    "E_JSON_DEPTH": "found nesting deeper than ..., expected less",
    "E_JSON_DUPLICATE_KEY": "found the key `...` a second time, expected each key once",
    "E_JSON_LINE_TOO_LONG": "found a line of ... bytes, expected at most ...",
    "E_JSON_NOT_OBJECT": "found a value that is not an object, expected `{`",
    "E_JSON_NUMBER": "found a number outside float64, expected a finite one",
    "E_JSON_SURROGATE": "found a lone surrogate, expected a pair",
    "E_JSON_SYNTAX": "found ..., expected ...",
    "E_JSON_UTF8": "found an invalid byte, expected UTF-8",
    "E_NONFINITE": "the model gives no finite log-prob",
    "E_NOTHING_SCORED": "the answer has no token with something before it",
    "E_NOT_JUDGED": "the answer could not be judged",
    "E_OOM_RECORD": "does not fit in memory even alone in its batch",
    "E_PARQUET_VALUE": "a value that Python does not have, such as a text that is no UTF-8",
}


@dataclass(frozen=True)
class Raised:
    """One place where an error is made: its code, its class, what it says (None: not written there)."""

    code: str
    kind: str
    says: str | None


def exit_codes() -> str:
    """Give the table of exit codes."""
    meanings = {kind.exit_code: _first_line(kind) for kind in KINDS.values()} | OTHER_EXITS
    meanings[2] += " Of `doctor`: a required package is missing."
    rows = [f"| {number} | {meanings[number]} |" for number in sorted(meanings)]
    return "\n".join(["| exit code | when |", "|---|---|", *rows]) + "\n"


def error_codes() -> str:
    """Give the table of the codes that end a command."""
    by_code: dict[str, set[tuple[str, str]]] = {}
    for raised in raised_everywhere():
        if raised.kind in KINDS:
            by_code.setdefault(raised.code, set()).add((raised.kind, raised.says or ""))
    for code, handed_on in HANDED_ON.items():
        by_code[code] = {handed_on}
    rows = []
    for code, found in sorted(by_code.items()):
        exits = sorted({KINDS[kind].exit_code for kind, _ in found})
        said = _cell({says for _, says in found})
        rows.append(f"| `{code}` | {', '.join(map(str, exits))} | {said} |")
    return "\n".join(["| code | exit code | what it says |", "|---|---|---|", *rows]) + "\n"


def record_codes() -> str:
    """Give the table of the codes of single records."""
    by_code = {code: {says} for code, says in OF_RECORDS.items()}
    for raised in raised_everywhere():
        if raised.kind == "RecordError":
            by_code.setdefault(raised.code, set()).add(raised.says or "")
    rows = [f"| `{code}` | {_cell(says)} |" for code, says in sorted(by_code.items())]
    return "\n".join(["| code | what it says |", "|---|---|", *rows]) + "\n"


def raised_everywhere() -> Iterator[Raised]:
    """Go through all modules."""
    for folder in SOURCES:
        for file in sorted(folder.rglob("*.py")):
            yield from raised_in(ast.parse(file.read_text(encoding="utf-8")))


def raised_in(module: ast.Module) -> Iterator[Raised]:
    """Go through one module's functions."""
    constants = {
        target.id: node.value.value
        for node in ast.walk(module)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and CODE.fullmatch(str(node.value.value))
    }
    for scope in [*(n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)), module]:
        for call in _own_calls(scope):
            if (kind := _name(call.func)) not in {*KINDS, "RecordError"}:
                continue
            arguments = {word.arg: word.value for word in call.keywords}
            record = kind == "RecordError"
            code = _code(call.args[0] if record else arguments.get("code"), constants)
            says = call.args[1] if record else call.args[0]
            if code is not None:
                yield Raised(code, kind, _text(says, scope, call.lineno))


def _own_calls(scope: ast.AST) -> Iterator[ast.Call]:
    """Give the calls of a function, not those of functions inside it."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from _own_calls(child)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _code(given: ast.expr | None, constants: dict[str, str]) -> str | None:
    if isinstance(given, ast.Constant):
        return str(given.value)
    return constants.get(given.id) if isinstance(given, ast.Name) else None


def _text(says: ast.expr, scope: ast.AST, line: int) -> str | None:
    """Give a message as it is written, `...` for each value in it."""
    if isinstance(says, ast.Name):
        before = [
            node
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            and _name(node.targets[0]) == says.id
            and node.lineno < line
        ]
        return _text(before[-1].value, ast.Pass(), line) if before else None
    if isinstance(says, ast.Constant):
        return str(says.value)
    if isinstance(says, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "..." for p in says.values]
        return "".join(parts)
    return None


def _cell(texts: set[str]) -> str:
    words = sorted(
        {" ".join(re.sub(r"(\.\.\.)+", "...", text).split()) for text in texts} - {"", "..."}
    )
    return "<br>".join(text.replace("|", "\\|").replace("<", "&lt;") for text in words)


def _first_line(kind: type[Exception]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]

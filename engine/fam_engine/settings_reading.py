"""Settings as the user gives them: flags, and a YAML file of the same names; flags win.

In: the flags, the file. Out: a settings object of `config`, or an error that names the setting and the line.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fam_engine.config import NOWHERE, Settings, nearest, path_problem
from fam_engine.errors import UsageError

ConfigT = TypeVar("ConfigT", bound=Settings)
# Flags that say how a command runs, of which a file knows nothing.
_FLAGS_ONLY = ("quiet", "json", "debug", "dry_run", "config")


def read_config(
    kind: type[ConfigT], flags: dict[str, Any], file: str | Path | None, *, dry_run: bool = False
) -> ConfigT:
    """Join a YAML file with the flags given, flags winning, and check the result.

    Args:
        kind: Which settings.
        flags: Values by name, None where not given.
        file: The YAML file, if there is one.
        dry_run: Nothing will be written, so that no `out` is needed.

    Raises:
        UsageError: The file does not read, a name is unknown, or a value does not fit.
    """
    file = None if file is None else given_path(file, "config", any_name=True)
    values = _read_yaml(file) if file else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    if dry_run:
        values.setdefault("out", NOWHERE)
    known = list(kind.model_fields)
    for name in values:
        if name not in known and name in _FLAGS_ONLY:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"`{name}` is no setting, only a flag",
                code="E_CONFIG_NAME",
                where=str(file) if file else None,
                hint=f"give {flag} to the command",
            )
        if name not in known:
            raise UsageError(
                f"unknown setting `{name}`{nearest(str(name), known)}",
                code="E_CONFIG_NAME",
                where=str(file) if file else None,
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, file) from None


def given_path(path: str | Path, name: str, *, any_name: bool = False) -> Path:
    """Check an argument that names a file or folder and is no setting.

    Args:
        path: What was given.
        name: The argument.
        any_name: See `config.path_problem`.

    Raises:
        UsageError: It cannot be one.
    """
    problem = path_problem(path, any_name=any_name)
    if problem:
        raise UsageError(
            f"`{name}` {problem[0]}",
            code="E_CONFIG_VALUE",
            where=str(path) or None,
            hint=problem[1],
        )
    return Path(path)


class _Loader(yaml.SafeLoader):
    """The safe loader, for keys that come once and texts that the system takes as names of files."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in known:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key `{key.value}` comes a second time",
                    problem_mark=key.start_mark,
                )
            known.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if "\0" in text:
        raise yaml.constructor.ConstructorError(
            problem="a text holds a null character", problem_mark=node.start_mark
        )
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", code="E_CONFIG_FILE", where=str(file)
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f"{file}:{line + 1}" if line is not None else str(file)
        reason = getattr(error, "problem", None)
        says_colon = reason == "mapping values are not allowed here"
        raise UsageError(
            f"is not YAML{f': {reason}' if reason else ''}",
            code="E_CONFIG_FILE",
            where=where,
            hint="put a text that holds `: ` into quotes" if says_colon else None,
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(
            "holds no settings, expected `name: value` lines",
            code="E_CONFIG_FILE",
            where=str(file),
        )
    # Flags are written with `-`, settings with `_`; a file may use either.
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _first_problem(error: ValidationError, file: Path | None) -> UsageError:
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    code, where = "E_CONFIG_VALUE", str(file) if file else None
    if problem["type"] == "missing":
        hint = "see --help" if file else f"give --{name.replace('_', '-')}"
        return UsageError(f"setting `{name}` is missing", code=code, where=where, hint=hint)
    message = problem["msg"].removeprefix("Value error, ")
    # A whole section would hide what is wrong in it.
    given = "" if isinstance(problem["input"], dict) else f", given {_shown(problem['input'])}"
    lead = f"setting `{name}`: " if name else ""
    hint = problem.get("ctx", {}).get("hint", "see --help")
    return UsageError(f"{lead}{message}{given}", code=code, where=where, hint=hint)


def _shown(value: object) -> str:
    """Show a value in part: aliases can make a few lines of YAML a billion values."""
    text = reprlib.repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."

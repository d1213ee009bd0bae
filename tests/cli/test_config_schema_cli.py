from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fam_engine.config import SelectConfig, TrainConfig
from fam_engine.jobs.experiment.job import STUDIES
from fam_engine.jobs.schemas import SETTINGS, settings_schema
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
SPOKEN = [
    yaml.safe_load(block)
    for block in re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "experiment.md").read_text(), flags=re.DOTALL
    )
]
SHIPPED = [yaml.safe_load(file.read_text()) for file in sorted(STUDIES.glob("*.yaml"))]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
SAID_ONLY = {"title", "description", "default", "format", "$schema", "$defs"}


BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "exclusiveMinimum": lambda value, below: value > below,
    "exclusiveMaximum": lambda value, above: value < above,
    "minItems": lambda value, least: len(value) >= least,
    "maxItems": lambda value, most: len(value) <= most,
    "minProperties": lambda value, least: len(value) >= least,
}


def faults(value: Any, schema: Any, root: Any, at: str = "$") -> list[str]:  # noqa: ANN401 - any JSON
    """Validate by what our schemas use of JSON Schema; a keyword this does not know fails the test."""
    if schema is True:
        return []
    found: list[str] = []
    # The type comes first: a value of another one has no other faults.
    for keyword in sorted(schema.keys() - SAID_ONLY, key=lambda name: name != "type"):
        found += [] if found else _faults(keyword, value, schema, root, at)
    return found


def _faults(keyword: str, value: Any, schema: Any, root: Any, at: str) -> list[str]:  # noqa: ANN401
    wanted = schema[keyword]
    match keyword:
        case "$ref":
            return faults(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)
        case "anyOf":
            options = [faults(value, option, root, at) for option in wanted]
            return min(options, key=len)
        case "allOf":
            return [fault for part in wanted for fault in faults(value, part, root, at)]
        case "type":
            is_bool = isinstance(value, bool) and wanted in ("integer", "number")
            return [] if isinstance(value, TYPES[wanted]) and not is_bool else [f"{at}: {wanted}"]
        case "enum" | "const":
            allowed = wanted if keyword == "enum" else [wanted]
            return [] if value in allowed else [f"{at}: one of {allowed}"]
        case "required":
            return [f"{at}.{name}: missing" for name in wanted if name not in value]
        case "properties":
            names = wanted.keys() & value.keys()
            return [f for n in names for f in faults(value[n], wanted[n], root, f"{at}.{n}")]
        case "additionalProperties":
            names = value.keys() - schema.get("properties", {}).keys()
            if wanted is False:
                return [f"{at}.{name}: unknown" for name in names]
            return [f for n in names for f in faults(value[n], wanted, root, f"{at}.{n}")]
        case "items" | "prefixItems":
            parts = wanted if keyword == "prefixItems" else [wanted] * len(value)
            pairs = enumerate(zip(parts, value, strict=True))
            return [f for n, (part, item) in pairs for f in faults(item, part, root, f"{at}[{n}]")]
    return [] if BOUNDS[keyword](value, wanted) else [f"{at}: {keyword} {wanted}"]


@pytest.mark.parametrize("study", [*SPOKEN, *SHIPPED])
def test_every_documented_example_validates(study: dict[str, Any]) -> None:
    schema = settings_schema("experiment")
    assert faults(study, schema, schema) == []
    assert faults(study | {"sedes": [0]}, schema, schema) == ["$.sedes: unknown"]


def test_there_are_examples() -> None:
    assert SPOKEN
    assert len(SHIPPED) == 2


def test_a_schema_takes_what_settings_take_and_nothing_else() -> None:
    schema = settings_schema("train")
    given: dict[str, Any] = {"model": "m", "data": ["a.jsonl"], "out": "o", "rank": 8}
    assert TrainConfig.model_validate(given).rank == 8
    assert faults(given, schema, schema) == []
    for name, value in (("rank", 0), ("loss", "huber"), ("rnak", 8), ("data", "a.jsonl")):
        assert faults(given | {name: value}, schema, schema), name
    assert sorted(faults({"model": "m"}, schema, schema)) == ["$.data: missing", "$.out: missing"]
    schema = settings_schema("select")
    banded = {"data": ["a"], "scores": "s", "out": "o", "band": [0.25, 0.75]}
    assert SelectConfig.model_validate(banded).band == (0.25, 0.75)
    assert faults(banded, schema, schema) == []


@pytest.mark.parametrize("command", SETTINGS)
def test_each_command_prints_its_own(run: Run, command: str) -> None:
    code, printed, _ = run("config", "schema", command)
    assert code == 0
    schema = json.loads(printed)
    assert schema["title"] == f"fam-engine {command}"
    assert schema["properties"].keys() == SETTINGS[command].model_fields.keys()


def test_every_command_with_a_yaml_has_one() -> None:
    import inspect

    from fam_engine.cli import main

    with_yaml = {
        one.name
        for one in main.app.registered_commands
        if one.callback and {"config", "study"} & inspect.signature(one.callback).parameters.keys()
    }
    assert with_yaml <= SETTINGS.keys()


def test_another_name_is_refused_with_the_nearest(run: Run) -> None:
    code, _, told = run("config", "schema", "trian")
    assert code == 2
    assert "did you mean `train`" in told


def test_the_shell_is_told_how_to_complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FAM_ENGINE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fam-engine comp")
    monkeypatch.setenv("COMP_CWORD", "1")
    code, printed, _ = run()
    assert code == 0
    assert printed.split() == ["compare"]

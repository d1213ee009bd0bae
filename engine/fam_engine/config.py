"""Settings of every command: one pydantic model each, read from flags and from a YAML file of the same names.

In: what the user gave. Out: a checked, frozen settings object. Unknown names are refused with the nearest known one,
so a typing error never silently becomes a default. Flags win over the file.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fam_engine.errors import UsageError

RECORD_FIELDS = (
    "prompt",
    "messages",
    "response",
    "id",
    "source",
    "group",
    "answer",
    "correct",
    "task",
)

Precision = Literal["nf4", "bf16", "fp32"]
ComputeDtype = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseModel):
    """What all settings share: no unknown names, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Settings):
    """Which model computes, and how."""

    model: str = Field(description="model folder, hub id with --download, or `embedded`")
    adapter: Path | None = None
    precision: Precision = "nf4"
    compute_dtype: ComputeDtype = "auto"
    device: Device = "auto"
    download: bool = False


class RecordSettings(Settings):
    """Which records are read."""

    data: tuple[str, ...] = Field(description="JSON Lines or Parquet files, or `embedded`")
    map: dict[str, str] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("map")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in RECORD_FIELDS:
                raise ValueError(f"`{name}` is no record field{nearest(name, RECORD_FIELDS)}")
        return value

    @field_validator("data")
    @classmethod
    def _some_data(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no data file given")
        return value


class ScoreConfig(ModelSettings, RecordSettings):
    """Settings of `fam-engine score`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    template: str = "auto"
    boundary: Literal["separate", "joint"] = "separate"
    parse_special: bool = False
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["quarantine", "cut-prompt"] = "quarantine"
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    tokens: bool = False
    ifd: bool = False
    in_context: int = Field(default=0, ge=0, le=32)
    seed: int = Field(default=0, ge=0)


ConfigT = TypeVar("ConfigT", bound=Settings)


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Give `; did you mean ...?` for a mistyped name, or nothing when none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def read_config(kind: type[ConfigT], flags: dict[str, Any], file: Path | None) -> ConfigT:
    """Join a YAML file with the flags given, flags winning, and check the result.

    Raises:
        UsageError: The file does not read, a name is unknown, or a value does not fit.
    """
    values = _read_yaml(file) if file else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    known = list(kind.model_fields)
    for name in values:
        if name not in known:
            raise UsageError(
                f"unknown setting `{name}`{nearest(str(name), known)}",
                code="E_CONFIG_NAME",
                where=str(file),
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, file) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", code="E_CONFIG_FILE", where=str(file)
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f"{file}:{line + 1}" if line is not None else str(file)
        raise UsageError("is not YAML", code="E_CONFIG_FILE", where=where) from None
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
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "missing" else f", given {problem['input']!r}"
    return UsageError(
        f"setting `{name}`: {message}{given}",
        code="E_CONFIG_VALUE",
        where=str(file) if file else None,
        hint="see --help",
    )

"""Settings of every command: one pydantic model each.

In: values by name, as `settings_reading` takes them from flags and a file. Out: a checked, frozen settings object.
Unknown names are refused with the nearest known one, so a typing error never silently becomes a default.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fam_engine.errors import NOT_UTF8_HINT, UsageError, is_utf8

# What --map may name: the columns of every form of records, and what stands beside them.
RECORD_FIELDS = (
    "prompt",
    "response",
    "completion",
    "messages",
    "conversations",
    "question",
    "instruction",
    "input",
    "history",
    "output",
    "system",
    "id",
    "source",
    "group",
    "answer",
    "correct",
    "task",
    "choices",
    "tests",
    "kind",
    "tools",
    "chat_template_kwargs",
)

# Settings that name files or folders, wherever their values are texts; data files are checked further as they are read.
DATA_PATHS = {"data", "test", "train", "validation", "few_shot_file", "file"}
PATHS = DATA_PATHS | {
    *("model", "adapter", "template", "scores", "out", "prompt_file", "token_file"),
    *("verify", "compare", "replay"),
}

# The matrices of a layer an adapter can change, in PEFT's names.
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Where a server finds the token its clients have to show, and a client of ours the one it shows.
TOKEN_VARIABLE = "FAM_ENGINE_TOKEN"

# Where a dry run that was given no output folder would write: nothing can be.
NOWHERE = Path(os.devnull)

Precision = Literal["nf4", "bf16", "fp32"]
ComputeDtype = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
RewriteMethod = Literal["rewrite", "answer", "explain", "minimum-change"]
# More than any run has time for; the numbers that follow from them stay readable.
MOST_EPOCHS, MOST_STEPS = 10**6, 10**9
# Of training, where torch draws the first values of an adapter: its generators take no more than 64 bits.
TrainingSeed = Annotated[int, Field(ge=0, lt=2**64)]


class Settings(BaseModel):
    """What all settings share: no unknown names, no change after reading, no number that JSON has not."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was given
        """Take a single text where a list of them is expected, as people write `data: answers.jsonl`."""
        if not isinstance(values, dict):
            return values
        lists = {
            n for n, field in cls.model_fields.items() if get_origin(field.annotation) is tuple
        }
        return {
            name: (value,) if name in lists and isinstance(value, str | Path) else value
            for name, value in values.items()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _paths_that_can_be(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        """Refuse paths a job would fail at later; an empty one, as from an unset variable, would be this folder."""
        if info.field_name in PATHS:
            any_name = info.field_name in DATA_PATHS
            values = value if isinstance(value, tuple | list) else (value,)
            for path in (one for one in values if isinstance(one, str | Path)):
                if problem := path_problem(path, any_name=any_name):
                    raise PydanticCustomError("path", problem[0], {"hint": problem[1]})
        return value

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Refuse unknown names in words of ours, with the nearest known one."""
        known = list(cls.model_fields)
        for name in values if isinstance(values, dict) else ():
            if name not in known:
                raise ValueError(f"`{name}` is unknown{nearest(str(name), known)}")
        return values


class BaseModelSettings(Settings):
    """Which base model computes, and how."""

    model: str = Field(description="model folder, hub id with --download, or `embedded`")
    precision: Precision = "nf4"
    compute_dtype: ComputeDtype = "auto"
    device: Device = "auto"
    download: bool = False


class ModelSettings(BaseModelSettings):
    """Which model computes, with which adapter."""

    adapter: Path | None = None


class RecordSettings(Settings):
    """Which records are read."""

    data: tuple[str, ...] = Field(
        description="JSON Lines (also .gz, .zst) or Parquet files, or `embedded`"
    )
    map: dict[str, str] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("map")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in RECORD_FIELDS:
                known = nearest(name, RECORD_FIELDS) or f", expected {', '.join(RECORD_FIELDS)}"
                raise ValueError(f"`{name}` is no record field{known}")
        return value

    @field_validator("data")
    @classmethod
    def _some_data(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no data file given")
        return value


class TemplateSettings(Settings):
    """How conversations become texts."""

    template: str = "auto"
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)


class TextSettings(TemplateSettings):
    """How texts become token ids."""

    parse_special: bool = False


class SamplingSettings(Settings):
    """How a model writes."""

    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)

    @field_validator("top_p", "top_k")
    @classmethod
    def _with_a_temperature(cls, value: float, info: ValidationInfo) -> float:
        if (
            info.data.get("temperature") == 0
            and value != cls.model_fields[str(info.field_name)].default
        ):
            raise ValueError(
                "needs a `temperature` above 0, where the likeliest token is all there is"
            )
        return value


# Settings of a scoring job that say which processes do it; results do not depend on them.
HOW_IT_RUNS = {"shard", "launcher", "workers"}


class ScoreConfig(ModelSettings, RecordSettings, TextSettings):
    """Settings of `fam-engine score`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    boundary: Literal["separate", "joint"] = "separate"
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["quarantine", "cut-prompt"] = "quarantine"
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    exact: bool = False
    tokens: bool = False
    ifd: bool = False
    in_context: int = Field(default=0, ge=0, le=32)
    seed: int = Field(default=0, ge=0)
    shard: str | None = Field(default=None, description="I/N: the I-th of N shares, from 1")
    launcher: Literal["local", "ray"] | None = None
    workers: int | None = Field(default=None, ge=1)

    @field_validator("shard")
    @classmethod
    def _one_of_some(cls, value: str | None) -> str | None:
        if value is not None:
            found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
            if found is None or not 1 <= int(found[1]) <= int(found[2]):
                raise ValueError("expected I/N with 1 <= I <= N")
        return value

    @field_validator("launcher")
    @classmethod
    def _not_a_shard(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("shard") is not None:
            raise ValueError("starts all workers itself; give either this or `shard`")
        return value

    @field_validator("workers")
    @classmethod
    def _with_a_launcher(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("launcher", "") is None:
            raise ValueError("needs `launcher`: who is to start them")
        return value


class GenerateConfig(ModelSettings, RecordSettings, SamplingSettings, TextSettings):
    """Settings of `fam-engine generate`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["quarantine", "cut-prompt"] = "quarantine"
    samples: int = Field(default=1, ge=1)
    stop: tuple[str, ...] = ()
    source: str | None = None
    max_slots: int = Field(default=64, ge=1, le=64)
    seed: int = Field(default=0, ge=0)

    @field_validator("samples")
    @classmethod
    def _not_alike(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("temperature") == 0:
            raise ValueError("needs a `temperature` above 0, where all would be the same text")
        return value


class RewriteConfig(ModelSettings, RecordSettings, SamplingSettings, TextSettings):
    """Settings of `fam-engine rewrite`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    method: RewriteMethod = "rewrite"
    prompt_file: Path | None = None
    samples: int = Field(default=4, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.7, gt=0, le=100)
    max_slots: int = Field(default=64, ge=1, le=64)
    seed: int = Field(default=0, ge=0)


class TrainConfig(BaseModelSettings, RecordSettings, TextSettings):
    """Settings of `fam-engine train`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["quarantine", "cut-prompt"] = "quarantine"
    train_on: Literal["last", "all-assistant"] = "last"
    validation: str | None = None
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    validate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = LINEARS
    rslora: bool = False
    loss: Literal["plain", "stm", "soft", "dft", "excess"] = "plain"
    max_token_perplexity: float = Field(default=2.5, ge=1)
    min_excess: float = Field(default=-1.0, lt=0)
    epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    batch_size: int = Field(default=16, ge=1)
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    max_grad_norm: float = Field(default=1.0, ge=0)
    save_every: int = Field(default=100, ge=1)
    tensorboard: bool = False
    nproc: int = Field(default=1, ge=1, description="processes, each with the whole model")
    seed: TrainingSeed = 0

    @field_validator("target_modules", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
            return value
        names = tuple(name for text in value for name in text.split(","))
        return LINEARS if names == ("all-linear",) else names  # as PEFT and TRL say it

    @field_validator("steps")
    @classmethod
    def _one_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("epochs") is not None:
            raise ValueError("give either this or `epochs`")
        return value

    @field_validator("validation_share")
    @classmethod
    def _one_validation(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("validation") is not None:
            raise ValueError("give either this or `validation`")
        return value

    @field_validator("validate_every", "patience")
    @classmethod
    def _with_validation(cls, value: int | None, info: ValidationInfo) -> int | None:
        given = (info.data.get(name) for name in ("validation", "validation_share"))
        if value is not None and all(one is None for one in given):
            raise ValueError("needs `validation` or `validation_share`")
        return value


class MergeConfig(BaseModelSettings, TemplateSettings):
    """Settings of `fam-engine merge`; every field is a flag of the same name, `_` written `-`."""

    adapter: Path = Field(description="PEFT LoRA folder")
    out: Path = Field(description="output folder")
    base: Literal["original", "dequantized"] = "original"
    data: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


class SelectConfig(RecordSettings):
    """Settings of `fam-engine select`; every field is a flag of the same name, `_` written `-`."""

    scores: Path = Field(description="scores.parquet of a `score` run over the same data")
    out: Path = Field(description="output folder")
    metric: str = "perplexity"
    per: Literal["question", "source", "all"] = "question"
    pick: Literal["lowest", "highest"] | None = None
    band: tuple[float, float] | None = None
    correct_only: bool = False
    min_tokens: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    quota: dict[str, int] = Field(default_factory=dict)
    max_share: float | None = Field(default=None, gt=0, le=1)
    budget: int | None = Field(default=None, ge=1)
    test: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)

    @field_validator("band", mode="before")
    @classmethod
    def _two_quantiles(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.count(":") != 1:
            raise ValueError("expected two quantiles LOW:HIGH")
        return value.split(":")

    @field_validator("band")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("expected two quantiles LOW:HIGH with 0 <= LOW < HIGH <= 1")
        return value

    @field_validator("quota")
    @classmethod
    def _countable(cls, value: dict[str, int]) -> dict[str, int]:
        for source, most in value.items():
            if most < 0:
                raise ValueError(f"the quota of `{source}` is below 0")
        return value


class EvalConfig(BaseModelSettings, RecordSettings, SamplingSettings, TextSettings):
    """Settings of `fam-engine eval`; every field is a flag of the same name, `_` written `-`."""

    out: Path = Field(description="output folder")
    adapter: tuple[Path, ...] = ()
    base: bool = True
    choice_by: Literal["logprob", "generation"] = "logprob"
    choice_metric: Literal["acc", "acc_norm"] = "acc"
    few_shot_file: str | None = None
    few_shot: int = Field(default=0, ge=0, le=64, validate_default=True)
    train: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    seed: int = Field(default=0, ge=0)

    @field_validator("few_shot")
    @classmethod
    def _with_a_file(cls, value: int, info: ValidationInfo) -> int:
        if bool(value) != (info.data.get("few_shot_file") is not None):
            raise ValueError("goes together with `few_shot_file`: how many of its examples")
        return value


class BenchConfig(BaseModelSettings):
    """Settings of `fam-engine bench`; every field is a flag of the same name, `_` written `-`."""

    model: str = "embedded"
    workloads: tuple[str, ...] = Field(default=(), description="names; none: all of them")
    limit: int = Field(default=64, ge=1, le=1000, description="records a run works on")
    rounds: int = Field(default=5, ge=1)
    warmup: int = Field(default=1, ge=0)
    threads: int | None = Field(default=None, ge=1)
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    out: Path | None = None
    compare: Path | None = None
    max_slowdown: float = Field(default=0.1, gt=0, lt=1)


class TokenizeConfig(RecordSettings, TextSettings):
    """Settings of `fam-engine tokenize`; every field is a flag of the same name, `_` written `-`."""

    model: str = Field(description="folder with a tokenizer, hub id with --download, or `embedded`")
    download: bool = False
    out: Path | None = None
    boundary: Literal["separate", "joint"] = "separate"
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["quarantine", "cut-prompt"] = "quarantine"
    capacity: int = Field(default=2048, ge=64)
    verify: bool = False
    ids: Literal["jsonl", "parquet"] | None = None

    @field_validator("ids")
    @classmethod
    def _with_a_folder(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("out") is None:
            raise ValueError("needs `out`, the folder to write them to")
        return value


class ExportConfig(RecordSettings):
    """Settings of `fam-engine export`; every field is a flag of the same name, `_` written `-`."""

    format: Literal["trl", "axolotl", "llama-factory"]
    out: Path = Field(description="output file")

    @field_validator("out")
    @classmethod
    def _json_lines(cls, value: Path) -> Path:
        if value.suffix != ".jsonl":  # the tools go by the ending
            raise ValueError("needs the ending .jsonl")
        return value


class VerifyConfig(BaseModelSettings, RecordSettings, TemplateSettings):
    """Settings of `fam-engine export --verify`; every field is a flag of the same name, `_` written `-`."""

    verify: Path = Field(description="PEFT LoRA folder")
    data: tuple[str, ...] = ("embedded",)
    limit: int = Field(default=50, ge=1, le=1000)
    url: str | None = None
    served_model_name: str | None = None

    @field_validator("served_model_name")
    @classmethod
    def _with_a_server(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("url") is None:
            raise ValueError("needs `url`, the server that calls the model so")
        return value


class ServeConfig(ModelSettings, TemplateSettings):
    """Settings of `fam-engine serve`; every field is a flag of the same name, `_` written `-`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    served_model_name: str | None = None
    token_file: Path | None = None
    max_length: int | None = Field(default=None, ge=2)
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    max_requests: int = Field(default=128, ge=1)

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.served_model_name or self.model

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("127.0.0.1", "::1", "localhost")


class ReplayConfig(Settings):
    """Settings of `fam-engine select --replay`."""

    replay: Path
    seed: int = Field(default=0, ge=0)


class DoctorConfig(Settings):
    """Settings of `fam-engine doctor`."""

    model: str | None = None
    adapter: Path | None = None
    device: Device = "auto"


def check_threshold(settings: TrainConfig) -> None:
    """Refuse a threshold of another loss, which would do nothing.

    Not part of the settings' own checks: a study gives thresholds to all variants and losses to some.

    Raises:
        UsageError: There is one.
    """
    for name, losses in (("max_token_perplexity", ("stm", "soft")), ("min_excess", ("excess",))):
        if name in settings.model_fields_set and settings.loss not in losses:
            raise UsageError(
                f"setting `{name}`: is the threshold of `loss` {' and '.join(losses)}, "
                f"this is {settings.loss}",
                code="E_CONFIG_VALUE",
                hint="give that loss, or leave the threshold out",
            )


def path_problem(path: str | Path, *, any_name: bool = False) -> tuple[LiteralString, str] | None:
    """Say why a path cannot be taken, and what to do; None where it can.

    Args:
        path: What was given.
        any_name: Whether its name may be no UTF-8, as of what is read only, or is looked at elsewhere, as of data.
    """
    if not str(path):
        return "is empty", "give a path; `.` is this folder"
    if not (any_name or is_utf8(str(path))):
        return "has a name that is not UTF-8", NOT_UTF8_HINT
    return None


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Give `; did you mean ...?` for a mistyped name, or nothing when none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""

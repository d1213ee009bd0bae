"""The YAML of an experiment: one checked, frozen settings object.

In: a YAML file. Out: an `ExperimentConfig`. Sections named after a command (`score`, `rewrite`, `train`, `eval`) take
that command's settings by their own names; what the experiment decides itself (model, data, out, seed) is refused
there. Paths are relative to the working folder; `{task}` in a path is the task's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from fam_engine.config import (
    ComputeDtype,
    Device,
    EvalConfig,
    Precision,
    RewriteConfig,
    ScoreConfig,
    Settings,
    TrainConfig,
    TrainingSeed,
    nearest,
)
from fam_engine.embedded.problems import SKILLS, Style

# Answers a model makes, by method of `rewrite`; answers made from others by rule.
ByModel = Literal["rewrite", "self", "explain", "minimum-change"]
ByRule = Literal[
    "gold-only", "without-marks", "correct-only", "length-matched", "total-length-matched"
]
BY_MODEL: tuple[str, ...] = get_args(ByModel)
# What the experiment sets itself in the settings of each command.
_OURS = {
    *("model", "adapter", "data", "out", "seed", "precision", "compute_dtype", "device"),
    *("download", "template", "chat_template_kwargs", "limit", "map", "method", "validation"),
    *("base", "few_shot_file", "few_shot", "train"),
}
_STAND_INS = {"model": "embedded", "data": ("embedded",), "out": Path()}


class ModelEntry(Settings):
    """One model of a study; what is None is the study's.

    Attributes:
        model: A folder, a hub id, or `embedded`.
        template: Its chat template.
        chat_template_kwargs: What else that is told.
    """

    model: str
    template: str | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


def _entry(given: ModelEntry | str) -> ModelEntry:
    return ModelEntry(model=given) if isinstance(given, str) else given


class TaskSettings(Settings):
    """What is learnt, and how it is tested: files, or problems we generate.

    Attributes:
        test: File of questions with gold answers.
        skills: Or: names of generated skills, asked in turn.
        num_train: Generated questions to train on.
        num_test: Generated questions to test on.
        first_seed: Seed of the first generated problem; tasks whose seeds overlap may share
            questions.
        kind: How answers are judged; default: what the gold answer looks like.
        source: Where to get the file; told where it is missing.
    """

    test: str | None = None
    source: str = ""
    skills: tuple[str, ...] = ()
    num_train: int = Field(default=0, ge=0)
    num_test: int = Field(default=0, ge=0)
    first_seed: int = Field(default=1_000_000, ge=0)
    kind: Literal["math", "choice", "exact", "code"] | None = None

    @field_validator("skills")
    @classmethod
    def _known_skills(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SKILLS:
                raise ValueError(f"`{name}` is no skill{nearest(name, SKILLS)}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> TaskSettings:
        if (self.test is None) == (not self.skills):
            raise ValueError("give either `test` (a file) or `skills` (generated)")
        if self.skills and not self.num_test:
            raise ValueError("generated `skills` need `num_test`")
        return self


class AnswerSettings(Settings):
    """One variant of the answers: where it comes from, or what it is made of.

    Attributes:
        file: Records that hold it; `{task}` is the task's name.
        style: Or: style of generated answers.
        make: Or: made, by the model or by a rule, from the variant `of`.
        of: The variant it is made from.
        to: The variant whose length it is matched to.
        form: What a gold-only answer looks like; `{answer}` is the gold answer.
        tasks: The tasks that have it; default: all.
        train: Settings of `train` for this variant alone, such as `loss: stm`.
        control: A control arm: told of in the report, never the one the verdict is about.
        source: Where to get the file; told where it is missing.
    """

    file: str | None = None
    source: str = ""
    style: Style | None = None
    make: Literal[ByModel, ByRule] | None = None
    of: str | None = None
    to: str | None = None
    form: str = "{answer}"
    tasks: tuple[str, ...] = ()
    train: dict[str, Any] = Field(default_factory=dict)
    control: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> AnswerSettings:
        if sum(one is not None for one in (self.file, self.style, self.make, self.of)) == 0:
            raise ValueError("give one of `file`, `style`, `make` or (the same answers) `of`")
        if sum(one is not None for one in (self.file, self.style, self.of)) != 1:
            raise ValueError("give one of `file`, `style` and `of`")
        if self.make is not None and self.of is None:
            raise ValueError("`make` needs `of`: the variant it is made from")
        if (self.to is not None) != (self.make in ("length-matched", "total-length-matched")):
            raise ValueError("`to` goes together with `make: length-matched`")
        if self.of is not None and self.make is None and not self.train:
            raise ValueError("the same answers as `of` need `train` settings of their own")
        return self

    @field_validator("train")
    @classmethod
    def _train_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _settings_of(TrainConfig, value)


class BudgetSettings(Settings):
    """How much may be spent.

    Attributes:
        records: Questions trained on in each task, the same for every variant.
        questions: Test questions of a task; default: all.
        retention_questions: Of each other task; default: `questions`.
        minutes: Of computing, over all runs; what is left then is not begun.
    """

    records: int | None = Field(default=None, ge=1)
    questions: int | None = Field(default=None, ge=1)
    retention_questions: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)


class ExperimentConfig(Settings):
    """A study.

    Attributes:
        title: Of the report.
        notes: Printed in the report, such as what differs from a published protocol.
        models: Those it is about, by name alone or with what is their own.
        tasks: What is learnt.
        retention: What should not be forgotten, beside the other tasks.
        answers: The variants, in the order of the report.
        reference: The variant the most familiar one is compared with.
        margin: Difference in accuracy that would matter, a share.
        seeds: Of training; each variant is trained once with each.
        seed: Of everything else that is drawn.
        threads: Of the CPU; default: torch's own. A small model runs fastest on one, and bits
            may differ with their number.
    """

    title: str
    notes: tuple[str, ...] = ()
    models: tuple[ModelEntry | str, ...] = Field(min_length=1)
    precision: Precision = "nf4"
    compute_dtype: ComputeDtype = "auto"
    device: Device = "auto"
    download: bool = False
    template: str = "auto"
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    tasks: dict[str, TaskSettings] = Field(min_length=1)
    retention: dict[str, TaskSettings] = Field(default_factory=dict)
    answers: dict[str, AnswerSettings] = Field(min_length=2)
    reference: str
    margin: float = Field(default=0.02, gt=0, lt=1)
    seeds: tuple[TrainingSeed, ...] = Field(default=(0, 1, 2), min_length=1)
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    budget: BudgetSettings = BudgetSettings()
    score: dict[str, Any] = Field(default_factory=dict)
    rewrite: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)

    @field_validator("models")
    @classmethod
    def _each_once(cls, value: tuple[ModelEntry | str, ...]) -> tuple[ModelEntry | str, ...]:
        names = [entry.model for entry in map(_entry, value)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`{name}` is named more than once")
        return value

    @field_validator("score", "rewrite", "train", "eval")
    @classmethod
    def _settings(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:  # noqa: ANN401
        kinds: dict[str, type[Settings]] = {
            "score": ScoreConfig,
            "rewrite": RewriteConfig,
            "train": TrainConfig,
            "eval": EvalConfig,
        }
        return _settings_of(kinds[info.field_name], value)

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected different numbers")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> ExperimentConfig:
        for name in self.retention:
            if name in self.tasks:
                raise ValueError(f"`{name}` is both a task and in `retention`")
        for name, variant in self.answers.items():
            self._check_variant(name, variant)
        if self.reference not in self.answers:
            raise ValueError(
                f"reference `{self.reference}` is no variant"
                f"{nearest(self.reference, list(self.answers))}"
            )
        for task in self.tasks:
            if self.reference not in self.variants_of(task):
                raise ValueError(f"task `{task}` has no variant `{self.reference}`, the reference")
        return self

    def _check_variant(self, name: str, variant: AnswerSettings) -> None:
        earlier = list(self.answers)[: list(self.answers).index(name)]
        for other in (variant.of, variant.to):
            if other is not None and other not in earlier:
                raise ValueError(f"`{name}` is made from `{other}`, which is no variant before it")
        for task in variant.tasks:
            if task not in self.tasks:
                raise ValueError(f"`{name}`: `{task}` is no task{nearest(task, list(self.tasks))}")
        for task in variant.tasks or self.tasks:
            settings = self.tasks[task]
            if variant.style is not None and not (settings.skills and settings.num_train):
                raise ValueError(f"`{name}`: task `{task}` generates nothing to train on")
            if variant.file is not None and settings.skills:
                raise ValueError(f"`{name}`: task `{task}` is generated and takes no files")
            for other in (variant.of, variant.to):
                if other is not None and other not in self.variants_of(task):
                    raise ValueError(f"`{name}`: task `{task}` has no variant `{other}`")

    def variants_of(self, task: str) -> dict[str, AnswerSettings]:
        """Give the variants a task has, in order."""
        return {
            name: variant
            for name, variant in self.answers.items()
            if not variant.tasks or task in variant.tasks
        }

    def data_file(self, task: str, variant: AnswerSettings) -> str | None:
        """Give the file of a variant for a task."""
        return None if variant.file is None else variant.file.replace("{task}", task)

    @property
    def model_names(self) -> list[str]:
        """Its models, as it names them."""
        return [entry.model for entry in map(_entry, self.models)]

    def model_settings(self, model: str) -> dict[str, Any]:
        """Give what every command is told about a model of the study."""
        (entry,) = (entry for entry in map(_entry, self.models) if entry.model == model)
        return {
            "precision": self.precision,
            "compute_dtype": self.compute_dtype,
            "device": self.device,
            "download": self.download,
            "template": self.template,
            "chat_template_kwargs": self.chat_template_kwargs,
            **entry.model_dump(exclude_none=True),
        }


def _settings_of(kind: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Check settings of a command under their own names, a `-` read as `_`."""
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = [name for name in kind.model_fields if name not in _OURS]
    for name in values:
        if name not in known:
            raise ValueError(f"`{name}` cannot be set here{nearest(name, known)}")
    stand_ins = {name: value for name, value in _STAND_INS.items() if name in kind.model_fields}
    try:
        kind.model_validate({**stand_ins, **values})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"`{place}`: {problem['msg'].removeprefix('Value error, ')}") from None
    return values

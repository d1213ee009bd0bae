"""The steps that run a model: each one call of a job, with its settings.

In: an `ExperimentConfig` and one of its models. Out: steps whose folders are the output folders of `rewrite`, `score`,
`train` and `eval`, so each can be looked into, and an interrupted one goes on by its job's own resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fam_engine.config import EvalConfig, RewriteConfig, ScoreConfig, TrainConfig
from fam_engine.jobs.evaluation.job import run_eval
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.steps import Step, StepMaker, Work
from fam_engine.jobs.rewriting.job import run_rewrite
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.training.job import ADAPTER, run_train
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import choose_device
from fam_engine.model.folders import hash_model, resolve_model
from fam_engine.model.loading import load_model
from fam_engine.version import __version__

RECORDS, QUESTIONS = "records.jsonl", "questions.jsonl"


class LoadedModel:
    """The base model evaluations in a row share; any other step puts it away first, for the memory."""

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._settings: Mapping[str, Any] = {}

    def get(self, settings: Mapping[str, Any]) -> Decoder:
        """Load a model, unless it is there."""
        if self._decoder is None or self._settings != settings:
            self.put_away()
            folder, _ = resolve_model(settings["model"], download=settings["download"])
            names = ("precision", "compute_dtype", "device")
            self._decoder = load_model(folder, **{name: settings[name] for name in names})
            self._settings = settings
        return self._decoder

    def put_away(self) -> None:
        """Let go of the model."""
        self._decoder = None


class ModelSteps:
    """Makes the steps of one model.

    Args:
        config: The study.
        maker: Makes its steps.
        model: As the study names it.
        label: What tells it from the study's other models.
        loaded: Shared by all models of the study.

    Raises:
        ModelRefusedError: The model is not there.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        maker: StepMaker,
        model: str,
        label: str,
        loaded: LoadedModel,
    ) -> None:
        folder, _ = resolve_model(model, download=config.download)
        self.model = model
        self.label = label
        self._config = config
        self._maker = maker
        self._loaded = loaded
        self._settings = config.model_settings(model)
        template = self._settings["template"]
        self._base = {
            "model": hash_model(folder),
            "precision": config.precision,
            "compute_dtype": config.compute_dtype,
            "device": choose_device(config.device).type,
            "template": Path(template).read_text("utf-8") if Path(template).is_file() else template,
            "chat_template_kwargs": self._settings["chat_template_kwargs"],
            "versions": {"fam-engine": __version__, "torch": torch.__version__},
        }

    def rewrite(self, label: str, answers: Step, method: str) -> Step:
        """Let the model write answers of its own to the questions of other answers."""

        def work(folder: Path, progress: StudyProgress) -> None:
            data = (str(answers.folder / RECORDS),)
            config = RewriteConfig.model_validate(
                {
                    **self._settings,
                    "seed": self._config.seed,
                    **self._config.rewrite,
                    "method": method,
                    "data": data,
                    "out": folder,
                }
            )
            self._loaded.put_away()
            run_rewrite(config, progress)

        settings = {"settings": self._config.rewrite, "method": method, "seed": self._config.seed}
        return self._step("rewrite", label, settings, [answers], work)

    def score(self, label: str, answers: Step) -> Step:
        """Score a variant under the untrained model."""

        def work(folder: Path, progress: StudyProgress) -> None:
            self._loaded.put_away()
            run_score(self._score_config(answers, folder), progress)

        return self._step("score", label, {"settings": self._config.score}, [answers], work)

    def _score_config(self, answers: Step, folder: Path) -> ScoreConfig:
        data = (str(answers.folder / RECORDS),)
        settings = {**self._settings, "seed": self._config.seed, **self._config.score}
        return ScoreConfig.model_validate({**settings, "data": data, "out": folder})

    def train(self, label: str, answers: Step, own: Mapping[str, Any], seed: int) -> Step:
        """Train an adapter on a variant."""
        chosen = {**self._config.train, **own}
        # One length overrules the other where a variant has its own.
        if "steps" in own:
            chosen.pop("epochs", None)
        elif "epochs" in own:
            chosen.pop("steps", None)

        def work(folder: Path, progress: StudyProgress) -> None:
            data = (str(answers.folder / RECORDS),)
            given = {**self._settings, **chosen, "data": data, "out": folder, "seed": seed}
            self._loaded.put_away()
            run_train(TrainConfig.model_validate(given), progress)

        return self._step("train", label, {"settings": chosen, "seed": seed}, [answers], work)

    def test(self, label: str, tests: Sequence[Step], training: Step | None) -> Step:
        """Evaluate an adapter, or the untrained model, on all tests."""

        def work(folder: Path, progress: StudyProgress) -> None:
            adapters = () if training is None else (training.folder / ADAPTER,)
            config = EvalConfig.model_validate(
                {
                    **self._settings,
                    "seed": self._config.seed,
                    **self._config.eval,
                    "data": tuple(str(test.folder / QUESTIONS) for test in tests),
                    "adapter": adapters,
                    "base": training is None,
                    "out": folder,
                }
            )
            run_eval(config, progress, decoder=self._loaded.get(self._settings))

        needs = [*tests, *([training] if training else [])]
        settings = {"settings": self._config.eval, "seed": self._config.seed}
        return self._step("eval", label, settings, needs, work)

    def _step(
        self,
        kind: str,
        label: str,
        settings: Mapping[str, Any],
        needs: Sequence[Step],
        work: Work,
    ) -> Step:
        return self._maker.make(kind, label, {**self._base, **settings}, needs, work)

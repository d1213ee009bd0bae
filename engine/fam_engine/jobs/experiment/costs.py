"""What the steps that are not done will cost: seconds, from what finished steps took, else from a probe.

In: a `Plan` whose texts are made. Out: seconds a step. Work is counted in tokens through the model; a finished step of
the same kind says how long one takes here, and where there is none the trial of `train`'s own dry run. Rough: within a
factor of two or three before the first steps are done, better after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fam_engine.config import TrainConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.experiment.answer_steps import QUESTIONS, RECORDS
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.plan import Cell, Plan
from fam_engine.jobs.experiment.questions import load_rows
from fam_engine.jobs.experiment.steps import UNUSABLE, Step
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.training.forecast import forecast_train
from fam_engine.jobs.training.order import DEFAULT_EPOCHS
from fam_engine.model.folders import resolve_model

# What a token costs beside one of training, which goes forward and back once where memory allows.
_SHARES = {"score": 1 / 2, "train": 1.0, "eval": 1 / 2, "rewrite": 1 / 2}
_SAMPLE = 200
_DEFAULT_BATCH, _DEFAULT_SAMPLES = 16, 4


@dataclass(frozen=True)
class _Texts:
    """Sizes of a variant: answers, and tokens of their prompts and of the answers."""

    count: int
    prompt: float
    response: float


def predict_steps(config: ExperimentConfig, plan: Plan) -> dict[str, float]:
    """Predict the seconds of each step that is not done.

    Args:
        config: The study.
        plan: Its plan, the steps without a model done.

    Returns:
        Key -> seconds.
    """
    tokens: dict[str, float] = {}
    owner: dict[str, str] = {}
    for cell in plan.cells:
        counted = _cell_tokens(config, cell)
        tokens.update(counted)
        owner.update(dict.fromkeys(counted, cell.model))
    probes: dict[str, float] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for step in plan.steps:
        seconds = step.seconds()
        if seconds is not None and tokens.get(step.key):
            rates.setdefault((owner[step.key], step.kind), []).append(seconds / tokens[step.key])
    first = {cell.model: cell for cell in reversed(plan.cells)}
    predicted = {}
    for step in plan.steps:
        if step.is_done or step.key not in tokens:
            continue
        model = owner[step.key]
        known = rates.get((model, step.kind))
        if not known and model not in probes:
            probes[model] = _seconds_a_token(config, first[model]) or 0.0
        rate = sum(known) / len(known) if known else probes[model] * _SHARES[step.kind]
        predicted[step.key] = tokens[step.key] * rate
    return predicted


def _cell_tokens(config: ExperimentConfig, cell: Cell) -> dict[str, float]:
    """Count the tokens of the steps of a model and task, by key."""
    settings = config.model_settings(cell.model)
    folder, _ = resolve_model(cell.model, download=config.download)
    encoder = TextEncoder(
        folder,
        template=settings["template"],
        chat_template_kwargs=settings["chat_template_kwargs"],
    )
    dropped = cell.dropped
    try:
        texts = {
            name: _Texts(0, 0.0, 0.0) if name in dropped else _count(step, encoder)
            for name, step in cell.answers.items()
        }
    finally:
        encoder.close()
    found: dict[str, float] = {}
    for name, step in cell.answers.items():
        own = texts[name]
        whole = own.prompt + own.response
        for need in step.needs:
            if need.kind == "rewrite":
                samples = int(config.rewrite.get("samples", _DEFAULT_SAMPLES))
                found[need.key] = whole * samples
        found[cell.scores[name].key] = whole * _score_passes(config)
        for seed in config.seeds:
            train = {**config.train, **config.answers[name].train}
            found[cell.trainings[name, seed].key] = whole * _epochs(train, own.count)
            test = cell.tests[name, seed]
            found[test.key] = _test_tokens(test, own)
    reference = texts[config.reference]
    base = cell.tests[None, None]
    found[base.key] = _test_tokens(base, reference)
    return found


def _count(step: Step, encoder: TextEncoder) -> _Texts:
    """Count a variant's tokens, or those of what the model will make it from."""
    while not (step.folder / RECORDS).is_file() and step.needs:
        step = step.needs[0]
    if not (step.folder / RECORDS).is_file():
        return _Texts(0, 0.0, 0.0)
    rows = load_rows(step.folder / RECORDS)
    response = [str(row.get("response") or row.get("output") or row.get("answer")) for row in rows]
    whole = [json.dumps(row, ensure_ascii=False) for row in rows]
    ids, _ = encoder.encode_batch(response[:_SAMPLE])
    characters = sum(len(text) for text in response[:_SAMPLE])
    per_character = len(ids) / max(characters, 1)
    of_response = per_character * sum(map(len, response))
    # What a row holds beside question and answer is a few labels.
    of_prompt = max(per_character * sum(map(len, whole)) - of_response, 0.0)
    return _Texts(len(rows), of_prompt, of_response)


def _score_passes(config: ExperimentConfig) -> float:
    examples = int(config.score.get("in_context", 0))
    return 1.0 + (0.5 if config.score.get("ifd") else 0.0) + (1.0 + examples if examples else 0.0)


def _epochs(train: Mapping[str, Any], count: int) -> float:
    if "steps" in train and count:
        return float(train["steps"]) * float(train.get("batch_size", _DEFAULT_BATCH)) / count
    return float(train.get("epochs", DEFAULT_EPOCHS))


def _test_tokens(test: Step, texts: _Texts) -> float:
    """Foresee the tokens of an evaluation: answers as long as those trained on."""
    files = [need.folder / QUESTIONS for need in test.needs if need.kind == "questions"]
    questions = sum(len(load_rows(file)) for file in files if file.is_file())
    return questions * (texts.prompt + texts.response) / max(texts.count, 1)


def _seconds_a_token(config: ExperimentConfig, cell: Cell) -> float | None:
    """Give the seconds a token of training takes, from `train`'s own trial; None without answers that fit."""
    for step in cell.answers.values():
        data = step.folder / RECORDS
        if data.is_file():
            given = {**config.model_settings(cell.model), **config.train, "data": (str(data),)}
            train = TrainConfig.model_validate({**given, "out": step.folder})
            try:
                found = forecast_train(train, Nobody())
            except InputError as error:
                if error.code != UNUSABLE:
                    raise
                continue  # another variant may fit; that this one does not, its own steps will say
            return found.seconds / max(found.tokens["all"] * found.epochs, 1.0)
    return None

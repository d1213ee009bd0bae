"""A small job of each long command, and all that a finished one leaves, for comparing to the last bit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

# What a summary says of the run and not of the results.
_OF_THE_RUN = {"performance", "seconds", "seconds_total", "seconds_training", "tokens_per_second"}
# Reports show the figures above; that they are there is all that is compared.
_PAGES = (".html", ".md")
OUT = "out"
_COUNTING = ["one", "two", "three"]


@dataclass(frozen=True)
class SmallJob:
    """A command line, and the exit code of its end: 3 where records are broken. Results go to the folder `out`."""

    command: str
    arguments: tuple[str, ...]
    finished: int

    @property
    def line(self) -> list[str]:
        return [self.command, *self.arguments, "--out", OUT, "--quiet"]

    def but(self, **settings: object) -> SmallJob:
        """Give the job with other settings."""
        return replace(self, arguments=(*self.arguments, *_flags(**settings)))

    def clean(self, **settings: object) -> SmallJob:
        """Give the job with other settings that leave the broken records out."""
        return replace(self.but(**settings), finished=0)


def small_jobs(model: Path, folder: Path) -> dict[str, SmallJob]:
    """Write the input of a job of each command; give the jobs by command."""
    records, questions, numbers = (
        folder / f"{name}.jsonl" for name in ("records", "asked", "sums")
    )
    _write(records, _answers(100), broken_every=40)
    _write(questions, _questions(8), broken_every=5)
    _write(numbers, _sums(6), broken_every=4)
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(_study(model)), encoding="utf-8")
    base = ("--model", str(model), "--device", "cpu")
    jobs = [
        SmallJob("score", (*base, *_data(records), *_flags(max_tokens_per_batch=128)), 3),
        SmallJob(
            "train",
            (
                *base,
                *_data(records),
                *_flags(limit=30, steps=14, batch_size=4, max_tokens_per_batch=128, dropout=0.1),
                *_flags(learning_rate=0.01, validation_share=0.2, validate_every=4, save_every=3),
                *_flags(rank=4),
            ),
            0,
        ),
        SmallJob(
            "generate",
            (*base, *_data(questions), *_flags(max_new_tokens=6, samples=2, temperature=0.8)),
            3,
        ),
        SmallJob(
            "rewrite",
            (*base, *_data(numbers), *_flags(max_new_tokens=6, samples=1, method="answer")),
            3,
        ),
        SmallJob("eval", (*base, *_data(questions), *_flags(max_new_tokens=6)), 3),
        SmallJob("experiment", (str(study),), 0),
    ]
    return {job.command: job for job in jobs}


def shared_job(model: Path, folder: Path) -> SmallJob:
    """Write the input of a scoring job that makes a dozen parts."""
    file = folder / "shared.jsonl"
    _write(file, _answers(600), broken_every=200)
    return SmallJob(
        "score",
        ("--model", str(model), "--device", "cpu", *_data(file), *_flags(max_tokens_per_batch=512)),
        3,
    )


def smaller(job: SmallJob) -> SmallJob:
    """Give a job of fewer calls, where every one is to be met."""
    settings: dict[str, object] = {}
    if job.command == "score":
        settings = {"limit": 6, "max_tokens_per_batch": 192}
    elif job.command == "train":
        settings = {"limit": 8, "steps": 3, "validate_every": 2, "save_every": 2, "rank": 1}
        settings["target_modules"] = "q_proj"
    return job.clean(**settings) if settings else job


def contents(out: Path) -> dict[str, Any]:
    """Give what a finished job leaves for its user, by relative name; nothing else may be there."""
    found = {}
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if path.is_dir() or ".fam-engine" in parts or "checkpoints" in parts:
            continue
        found["/".join(parts)] = _content(path)
    return found


def leftovers(out: Path) -> list[str]:
    """Give the temporary files in a job's folder, its own state apart."""
    return [
        str(path.relative_to(out))
        for path in out.rglob("*")
        if path.name.endswith((".partial", ".old", ".tmp")) and ".fam-engine" not in path.parts
    ]


def _content(path: Path) -> Any:  # noqa: ANN401 - whatever can be compared
    if path.suffix == ".json":
        return _exact(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "log.jsonl":
        return [_exact(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix in _PAGES:
        return path.stat().st_size > 0
    return path.read_bytes()


def _exact(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Spell floats in hexadecimal, and leave out what is said of the run."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, dict):
        return {name: _exact(item) for name, item in value.items() if name not in _OF_THE_RUN}
    return value


def _data(*files: Path) -> list[str]:
    return ["--data", *map(str, files)]


def _flags(**settings: object) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _write(path: Path, records: Sequence[dict[str, Any]], *, broken_every: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(records):
            file.write(json.dumps(record) + "\n")
            if number % broken_every == broken_every - 1:
                file.write("broken\n")


def _answers(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "prompt": f"question {number // 2}\n",
            "response": " ".join(rng.choice(_COUNTING) for _ in range(rng.randint(1, 12))),
        }
        for number in range(count)
    ]


def _questions(count: int) -> list[dict[str, Any]]:
    """Questions, every other one with options to choose from."""
    options = {"answer": "B", "choices": ["red", "a dark blue", "green"]}
    return [
        {
            "id": f"q{n}",
            "prompt": f"which one, {n}?\n",
            "answer": "blue",
            **(options if n % 2 else {}),
        }
        for n in range(count)
    ]


def _sums(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"What is {n} + {n + 1}?",
            "response": f"{n} + {n + 1} = {2 * n + 1}\n#### {2 * n + 1}",
            "answer": str(2 * n + 1),
        }
        for n in range(count)
    ]


def _study(model: Path) -> dict[str, Any]:
    return {
        "title": "miniature",
        "models": [str(model)],
        "precision": "fp32",
        "device": "cpu",
        "tasks": {"new": {"skills": ["average"], "num_train": 4, "num_test": 2}},
        "retention": {"known": {"skills": ["change"], "num_test": 2, "first_seed": 7}},
        "answers": {"plain": {"style": "plain"}, "formal": {"style": "formal"}},
        "reference": "formal",
        "seeds": [0],
        "train": {"steps": 2, "rank": 2},
        "eval": {"max_new_tokens": 4},
    }

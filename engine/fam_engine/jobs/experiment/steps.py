"""Steps that are computed once: what they are, where they live, and running those that are not done.

In: steps in an order in which each comes after what it needs. Out: a folder a step, named after its kind and a hash of
all it depends on. A step's hash takes in the hashes of what it needs, so changing one variant gives new hashes to what
depends on it and to nothing else, and all hashes are known before anything runs. `step.json` is written last, whole: a
folder with it is finished and never opened for writing again; one without goes on by its own job's resume.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.data.files import write_json_whole
from fam_engine.errors import DivergedError, InputError, UsageError
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.journal import storage_errors
from fam_engine.jobs.stopwatch import Stopwatch

# Makes the files of a step in the folder it is given.
Work = Callable[[Path, StudyProgress], None]
_DONE = "step.json"
_LABEL_LENGTH = 40
MODEL_KINDS = ("rewrite", "score", "train", "eval")
# Code of the error of a variant that is left without answers, and of a job that can use none of its records.
EMPTY, UNUSABLE = "E_STUDY_EMPTY", "E_INPUT_UNUSABLE"
# By kind of step, the code of the error that says its variant has nothing to go on with. An evaluation has none: its
# questions are those of every variant.
_NOTHING_LEFT = {"answers": EMPTY, "rewrite": UNUSABLE, "score": UNUSABLE, "train": UNUSABLE}
_BUDGETED = ("train", "eval")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: What it does: `questions`, `answers`, or the command it runs: `rewrite`, `score`...
        label: What it is about, in words.
        folder: Where its files are or will be.
        key: Hex digest of all it depends on.
        work: Makes the files in the folder it is given.
        needs: The steps whose files it reads.
    """

    kind: str
    label: str
    folder: Path
    key: str
    work: Work
    needs: tuple[Step, ...]

    @property
    def needs_model(self) -> bool:
        """Whether it runs a model, or waits for one."""
        return self.kind in MODEL_KINDS or any(need.needs_model for need in self.needs)

    @property
    def is_done(self) -> bool:
        """Whether its files are there."""
        return (self.folder / _DONE).is_file()

    @property
    def empty(self) -> str | None:
        """Say why it is finished without files: nothing was left to train on, or nothing the model can take."""
        return self.note().get("empty") if self.is_done else None

    @property
    def diverged(self) -> str | None:
        """Say why it is finished without a result: the training diverged."""
        return self.note().get("diverged") if self.is_done else None

    def seconds(self) -> float | None:
        """Give how long it took, None where it is not done."""
        return float(self.note()["seconds"]) if self.is_done else None

    def note(self) -> dict[str, Any]:
        """Give what is kept about a finished step."""
        found: dict[str, Any] = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
        return found


class StepMaker:
    """Makes the steps of an experiment, each once.

    Args:
        out: Output folder of the experiment.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._made: dict[str, Step] = {}

    def make(
        self,
        kind: str,
        label: str,
        settings: Mapping[str, Any],
        needs: Sequence[Step],
        work: Work,
    ) -> Step:
        """Make a step, or give the one made before that depends on the same.

        Args:
            kind: What it does.
            label: What it is about; no part of the key.
            settings: All it depends on beside other steps; JSON values.
            needs: Steps whose files it reads.
            work: See `Step`.
        """
        content = json.dumps([kind, settings, [need.key for need in needs]], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in self._made:
            folder = self._folder(kind, label, key)
            self._made[key] = Step(kind, label, folder, key, work, tuple(needs))
        return self._made[key]

    def of_kind(self, kind: str) -> list[Step]:
        """Give the steps of a kind made so far, in order."""
        return [step for step in self._made.values() if step.kind == kind]

    def _folder(self, kind: str, label: str, key: str) -> Path:
        """Name the folder for people; an earlier run may have named it after another variant."""
        end = f"-{key[:12]}"
        for found in sorted((self._out / "steps" / kind).glob(f"*{end}")):
            return found
        safe = "".join(c if c.isalnum() and c.isascii() else "-" for c in label)[:_LABEL_LENGTH]
        return self._out / "steps" / kind / f"{safe}{end}"


def unique(steps: Sequence[Step]) -> list[Step]:
    """Give each step once, where it comes first."""
    return list({step.key: step for step in steps}.values())


def run_steps(
    steps: Sequence[Step],
    progress: StudyProgress,
    check: Callable[[], None],
    *,
    budget_seconds: float | None = None,
) -> None:
    """Run the steps that are not done.

    Args:
        steps: Each after what it needs.
        progress: Whom to tell.
        check: Called before each step; what it raises ends the run: a signal has come, or no step can help any more.
        budget_seconds: Time that all steps, also those of earlier runs, may take; a step that is
            begun is finished, and no training or evaluation begins after.

    Raises:
        FamEngineError: A step failed for a reason its user can cure.
        Interrupted: A signal came; what is done is kept.
    """
    spent = sum(step.seconds() or 0.0 for step in steps)
    for number, step in enumerate(steps, start=1):
        if step.is_done:
            continue
        if budget_seconds is not None and step.kind in _BUDGETED and spent > budget_seconds:
            progress.tell("the time budget is spent: the rest is left out")
            return
        check()
        progress.begin(number, step)
        spent += _run(step, progress)


def _run(step: Step, progress: StudyProgress) -> float:
    watch = Stopwatch()
    with storage_errors(step.folder):
        step.folder.mkdir(parents=True, exist_ok=True)
        failure = _inherited(step) or _work(step, progress)
        seconds = watch.seconds()
        note = {"kind": step.kind, "label": step.label, "key": step.key, "seconds": seconds}
        write_json_whole(step.folder / _DONE, note | failure)
    return seconds


def _inherited(step: Step) -> dict[str, str]:
    """Give why a step has nothing to work on, as its note will say it; nothing if it has."""
    for need in step.needs:
        if need.empty is not None:
            return {"empty": need.empty}
        if need.diverged is not None:
            return {"diverged": need.diverged}
    return {}


def _work(step: Step, progress: StudyProgress) -> dict[str, str]:
    """Do the work of a step; give the outcome of one that has no result, as its note will say it.

    An arm that is left without answers, or whose answers the model cannot take, or a training that diverges, is told of
    in the report; it is no reason to lose the others.
    """
    try:
        _begin(step, progress)
    except InputError as error:
        if error.code != _NOTHING_LEFT.get(step.kind):
            raise
        outcome = {"empty": error.message}
    except DivergedError as error:
        outcome = {"diverged": f"{error.where}: {error.message}"}
    else:
        return {}
    progress.tell(f"{step.label}: {next(iter(outcome.values()))}")
    return outcome


def _begin(step: Step, progress: StudyProgress) -> None:
    try:
        step.work(step.folder, progress)
    except UsageError as error:
        if error.code != "E_RESUME_MISMATCH":
            raise
        # Begun by another version or on another number of threads; our own folder, so it starts over.
        progress.tell(f"{step.label}: begun under other conditions, starts over")
        shutil.rmtree(step.folder)
        step.folder.mkdir()
        step.work(step.folder, progress)

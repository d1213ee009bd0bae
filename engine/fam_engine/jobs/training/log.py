"""What a run says of each step: `log.jsonl`, and TensorBoard's files on request.

In: a `StepReport` a step. Out: a line each, flushed, so that the file can be followed. A run that goes on from a
checkpoint first drops the lines after it: those steps are about to be done again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fam_engine.data.files import write_text_whole
from fam_engine.errors import CorruptStateError, UsageError
from fam_engine.jobs.journal import storage_errors

NAME = "log.jsonl"


@dataclass(frozen=True)
class StepReport:
    """One step, or the state before the first.

    Attributes:
        step: Number, from 1; 0: before training.
        epoch: How many epochs are done after it.
        loss: What was trained on: weighted, nats a supervised token.
        nll: Mean surprisal of the answers' tokens, nats.
        kept: Mean weight of the tokens; 1 under the plain loss.
        lr: Learning rate.
        grad_norm: Norm of all gradients, before clipping.
        tokens: Supervised tokens.
        seconds: Time it took.
        validation_loss: Mean surprisal of the validation answers' tokens, where it was measured.
        diverged: Why the run stopped here; no checkpoint holds such a step.
    """

    step: int
    epoch: float
    loss: float | None = None
    nll: float | None = None
    kept: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    validation_loss: float | None = None
    diverged: str | None = None

    def line(self) -> dict[str, Any]:
        """Give what the log says: what was measured, and finite (JSON has no other numbers)."""
        return {name: value for name, value in asdict(self).items() if _is_sayable(value)}


class TrainingLog:
    """Writes the log of a run. Use as a context manager.

    Args:
        out: Output folder.
        step: The last step that is kept from an earlier run; 0: none.
        tensorboard: Whether to write TensorBoard's files too.

    Raises:
        UsageError: TensorBoard is asked for and not installed.
        CorruptStateError: A step before `step` is not in the log.
        StorageError: The disk would not take it, as in all methods.
    """

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        path = out / NAME
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        if [line["step"] for line in kept if line["step"]] != list(range(1, step + 1)):
            raise CorruptStateError(
                f"does not hold every step up to {step}, which is done",
                code="E_LOG",
                where=str(path),
                hint="put it back, or remove the output folder and start again",
            )
        self._path = path
        with storage_errors(path):
            self._board = _open_board(out / "tensorboard", step) if tensorboard else None
            write_text_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> TrainingLog:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        with storage_errors(self._path):
            self._file.close()
            if self._board:
                self._board.close()

    def keep(self) -> None:
        """Make what was written survive a power cut, before a checkpoint relies on it."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def write(self, report: StepReport) -> None:
        """Write a step."""
        with storage_errors(self._path):
            self._file.write(json.dumps(report.line()) + "\n")
            self._file.flush()
            if self._board:
                for name, value in report.line().items():
                    if name not in ("step", "diverged"):
                        self._board.add_scalar(f"train/{name}", value, report.step)


class SilentLog:
    """What the processes beside the first write to."""

    def __enter__(self) -> SilentLog:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def keep(self) -> None:
        """Do nothing."""

    def write(self, report: StepReport) -> None:
        """Write nothing."""


def _is_sayable(value: float | str | None) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of a log; a line a dead process left half written ends it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                return


def _open_board(folder: Path, step: int) -> Any:  # noqa: ANN401 - an optional package's type
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "TensorBoard is not installed",
            code="E_EXTRA",
            hint="pip install 'fam-engine[tensorboard]'",
        ) from None
    # From the start, also what an earlier run has said of the state before the first step.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

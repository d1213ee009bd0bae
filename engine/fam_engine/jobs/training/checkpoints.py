"""Checkpoints: everything a run needs to go on, to the last bit.

In: parameters, optimizer, counters. Out: `checkpoints/step-N/`, each a PEFT adapter that any command takes, with the
optimizer's state, `state.json`, and a manifest of hashes written last. No pickle. A folder appears whole; older ones go
only when a newer one is there, and never the last two nor the best. A damaged one is named and passed over for the one
before it; if none reads back the run stops, it never silently starts from scratch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fam_engine.data.files import write_folder_whole
from fam_engine.data.reading import hash_file
from fam_engine.errors import CorruptStateError, FamEngineError, InputError, UsageError
from fam_engine.jobs.journal import storage_errors
from fam_engine.jobs.training.checkpoint_steps import checkpoint_path, checkpoint_steps
from fam_engine.jobs.training.optim import OptimizerState
from fam_engine.model.safetensors_writing import save_tensors

ADAPTER_FILE = "adapter_model.safetensors"
_OPTIMIZER, _STATE, _MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"
_KEPT = 2
# What reading one raises that is not whole.
_DAMAGE = (CorruptStateError, InputError, OSError, SafetensorError, ValueError)


@dataclass(frozen=True)
class RunState:
    """The counters of a run.

    Attributes:
        step: Steps done.
        max_tokens_per_batch: Token budget of a micro-batch; smaller than at first if memory ran out.
        tokens: Supervised tokens trained on so far.
        seconds: Time spent in steps and validations.
        recent_nll: Mean surprisals of the last steps, for the divergence rule.
        lowest_nll: The lowest mean of a window of them.
        untrained_loss: The validation loss before the first step.
        best_step: The step with the lowest validation loss of those after.
        best_loss: That loss.
        num_worse: Validations since the lowest loss, the untrained model's included.
    """

    step: int
    max_tokens_per_batch: int
    tokens: int = 0
    seconds: float = 0.0
    recent_nll: tuple[float, ...] = ()
    lowest_nll: float | None = None
    untrained_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    num_worse: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        state: The counters.
        parameters: PEFT tensor name -> value, on the CPU.
        optimizer: The optimizer's state.
    """

    state: RunState
    parameters: dict[str, torch.Tensor]
    optimizer: OptimizerState


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are; made if absent.
        run: Name of the run (a hash of its key), so that another run's are never taken for ours.

    Raises:
        StorageError: The disk would not take the folder.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self._run = run
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".step-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def path(self, step: int) -> Path:
        """Give the folder of a step's checkpoint."""
        return checkpoint_path(self.folder, step)

    def save(
        self,
        state: RunState,
        optimizer: OptimizerState,
        write_adapter: Callable[[Path], None],
    ) -> None:
        """Keep a checkpoint, then let go of those no longer needed.

        Args:
            state: The counters.
            optimizer: The optimizer's state.
            write_adapter: Writes the parameters as a PEFT adapter into a folder.

        Raises:
            StorageError: The disk would not take it; the earlier ones are still there.
        """

        def write(folder: Path) -> None:
            write_adapter(folder)
            save_tensors(folder / _OPTIMIZER, optimizer.tensors)
            _write_json(folder / _STATE, {"run": asdict(state), "optimizer": optimizer.numbers})
            files = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
            body = {"run": self._run, "files": files}
            _write_json(folder / _MANIFEST, {"body": body, "sha256": _digest(body)})

        with storage_errors(self.path(state.step)):
            write_folder_whole(self.path(state.step), write)
        self._drop_old(state)

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """Read the newest checkpoint that is whole; None if there is none at all.

        Args:
            note: Told of each damaged one.

        Raises:
            UsageError: They belong to another run.
            CorruptStateError: There are some, and not one is whole.
        """
        steps = checkpoint_steps(self.folder)
        for step in steps:
            try:
                return self.read(step)
            except _DAMAGE as error:
                note(f"{self.path(step)} is damaged ({error}), going back to the one before")
        if steps:
            raise CorruptStateError(
                "not one checkpoint reads back",
                code="E_CHECKPOINT",
                where=str(self.folder),
                hint="remove the output folder and start again",
            )
        return None

    def parameters(self, step: int) -> dict[str, torch.Tensor]:
        """Read the parameters of a step's checkpoint: the one that the adapter is to be made of.

        Raises:
            CorruptStateError: It is not whole.
        """
        folder = self.path(step)
        try:
            _check(folder, self._run)
            tensors: dict[str, torch.Tensor] = load_file(folder / ADAPTER_FILE)
        except _DAMAGE as error:
            found = error.message if isinstance(error, FamEngineError) else str(error)
            raise CorruptStateError(
                f"the best checkpoint cannot be taken: {found}",
                code="E_CHECKPOINT",
                where=str(folder),
                hint="put back what was there; or take another of the checkpoints, each is a PEFT adapter; or begin "
                "again in another --out",
            ) from None
        return tensors

    def read(self, step: int) -> Checkpoint:
        """Read a step's checkpoint.

        Raises:
            CorruptStateError: It is not whole.
        """
        folder = self.path(step)
        _check(folder, self._run)
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        run = {**state["run"], "recent_nll": tuple(state["run"]["recent_nll"])}
        optimizer = OptimizerState(load_file(folder / _OPTIMIZER), state["optimizer"])
        return Checkpoint(RunState(**run), load_file(folder / ADAPTER_FILE), optimizer)

    def _drop_old(self, state: RunState) -> None:
        for step in checkpoint_steps(self.folder)[_KEPT:]:
            if step != state.best_step:
                shutil.rmtree(self.path(step), ignore_errors=True)


def _check(folder: Path, run: str) -> None:
    """Make sure a checkpoint is ours and its files are those that were written."""
    body = _manifest(folder)
    if body["run"] != run:
        raise UsageError(
            "belongs to another run",
            code="E_RESUME_MISMATCH",
            where=str(folder),
            hint="choose another --out, or remove this folder",
        )
    for name, expected in body["files"].items():
        if not (folder / name).is_file():
            raise _damaged(folder, f"`{name}` does not exist")
        if hash_file(folder / name) != expected:
            raise _damaged(folder, f"`{name}` is not what was written")


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise _damaged(folder, "the folder does not exist")
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        body: dict[str, Any] = manifest["body"]
        whole = manifest["sha256"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(folder, f"`{_MANIFEST}` does not read back")
    return body


def _damaged(folder: Path, what: str) -> CorruptStateError:
    return CorruptStateError(what, code="E_CHECKPOINT", where=str(folder))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

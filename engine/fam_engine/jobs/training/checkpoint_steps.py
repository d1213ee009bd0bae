"""Which steps of a run there are checkpoints of, for those who do not read them.

In: the folder of a run's checkpoints. Out: step numbers; without torch, which reading one takes.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"
_PREFIX = "step-"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Give the folder of a step's checkpoint."""
    return folder / f"{_PREFIX}{step}"


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps there are checkpoints of, newest first."""
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

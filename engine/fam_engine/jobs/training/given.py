"""What the loop is given of a job's input, in a form that reaches every process of a run.

In: the input as the first process has read it. Out: `Given`, by itself or through JSON: names of folders and numbers of
entries, no texts. So the others must see the output folder and the model under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fam_engine._rust_tokenize import Spool
from fam_engine.jobs.training.examples import Examples, measured
from fam_engine.jobs.training.prepare import Prepared


@dataclass(frozen=True)
class Given:
    """The input of the loop.

    Attributes:
        model: Folder of the base model.
        train: What to train on.
        validation: What to judge by; None: nothing.
        run: Name of the run: a hash of its key.
    """

    model: Path
    train: Examples
    validation: Examples | None
    run: str

    @classmethod
    def of(cls, data: Prepared) -> Given:
        """Take it from a job's input."""
        return cls(data.sources.model, data.train, data.validation, data.run)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Given:
        """Make what `to_json` said."""
        validation = told["validation"]
        return cls(
            Path(told["model"]),
            _open(told["train"]),
            _open(validation) if validation else None,
            told["run"],
        )

    def to_json(self) -> dict[str, Any]:
        """Say it in values that JSON can hold."""
        return {
            "model": str(self.model),
            "train": _named(self.train),
            "validation": _named(self.validation) if self.validation else None,
            "run": self.run,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        held_out = self.validation.longest if self.validation else 0
        return max(self.train.longest, held_out)


def _named(examples: Examples) -> dict[str, Any]:
    return {"folder": str(examples.folder), "entries": examples.entries.tolist()}


def _open(told: dict[str, Any]) -> Examples:
    folder = Path(told["folder"])
    # Groups tell questions apart, and that is done.
    return measured(folder, Spool.open(str(folder)), np.array(told["entries"], np.int64), ())

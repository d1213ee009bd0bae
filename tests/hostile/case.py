"""What a hostile artefact is: a harmless scoring job with one thing in it that a stranger made.

In: a folder and a small model. Out: a `Case` on disk. Everything the job may open lies in `inside`, which is also where
it runs; beside it lies `outside`, with files that it must not open and the place where a canary would appear, should
code of the artefact ever run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDS = [
    {"id": "a", "prompt": "one and two?\n", "response": "three"},
    {"id": "b", "prompt": "one and two?\n", "response": "four, I think"},
    {"id": "c", "prompt": "two and two?\n", "response": "four"},
]


@dataclass
class Case:
    """One job on disk, and how it is called.

    Attributes:
        root: Holds `inside` and `outside`.
        command: Subcommand and its arguments, relative to `inside`.
    """

    root: Path
    command: list[str] = field(
        default_factory=lambda: [
            "score",
            "--model",
            "model",
            "--data",
            "data.jsonl",
            "--out",
            "out",
        ]
    )

    @property
    def inside(self) -> Path:
        return self.root / "inside"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def model(self) -> Path:
        return self.inside / "model"

    @property
    def canary(self) -> Path:
        return self.outside / "canary"

    @property
    def payload(self) -> str:
        """Python that leaves a canary."""
        return f"open({str(self.canary)!r}, 'w').close()"

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the object in a JSON file of the model's folder."""
        path = self.model / name
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    def link(self, name: str, target: Path | str) -> None:
        """Put a link in place of a file of the model's folder."""
        path = self.model / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)


@dataclass(frozen=True)
class Artefact:
    """Something hostile, and what must come of it.

    Attributes:
        name: For people.
        make: Turns a harmless case into a hostile one.
        refused: Pattern of the error; None: the job runs as if it were not there.
        code: Exit code; 0 where nothing is refused.
        same_scores: Whether a job that runs must give the scores of the harmless one.
    """

    name: str
    make: Callable[[Case], object]
    refused: str | None
    code: int = 10
    same_scores: bool = False


def refused(name: str, make: Callable[[Case], object], pattern: str, *, code: int = 10) -> Artefact:
    """Give an artefact that ends the job with an error."""
    return Artefact(name, make, pattern, code)


def harmless(
    name: str, make: Callable[[Case], object], *, code: int = 0, same_scores: bool = True
) -> Artefact:
    """Give an artefact that the job passes by; with code 3, one that costs records."""
    return Artefact(name, make, None, code, same_scores and code == 0)


def lay_out(root: Path, model: Path) -> Case:
    """Write a harmless case."""
    case = Case(root)
    shutil.copytree(model, case.model)
    case.outside.mkdir()
    (case.outside / "secret").write_text("secret\n")
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (case.inside / "data.jsonl").write_text(lines)
    return case

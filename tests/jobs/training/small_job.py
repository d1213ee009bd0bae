"""Records to train on, and somebody to tell about progress."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ("one", "two", "three", "apples", "pears", "more", "less", "and", "so", "left")


class Notes:
    """Somebody told about progress, who remembers the news."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, count: int, detail: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records; every question has two answers."""
    rng = random.Random(seed)
    return [
        {
            "id": str(number),
            "prompt": f"question {seed} {number // 2}?\n",
            "response": " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))),
            "source": ("human", "model")[number % 2],
        }
        for number in range(count)
    ]


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

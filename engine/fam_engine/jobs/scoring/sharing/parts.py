"""The parts of a job: which entries of the spool are computed together by one worker.

In: a spool and the entries that have no result yet. Out: a folder with the entries in the order of the parts, and a
`PartPlan` of it. Entries with the same prompt are neighbours, so that it is computed once a part. A part is a run of
so many tokens, the same for all: large enough for full batches, small enough that a hundred workers end together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fam_engine._rust_tokenize import Spool
from fam_engine.data.files import write_text_whole, write_whole
from fam_engine.data.packing import Entries

FOLDER = "parts"
_ENTRIES, _PLAN = "entries.npy", "plan.json"
# Tokens of a part: a part in so many of the whole, but within these.
_PARTS = 128
_FEWEST_TOKENS, _MOST_TOKENS = 1 << 11, 1 << 22


@dataclass(frozen=True, eq=False)
class PartPlan:
    """The parts of a job, as they lie in its folder.

    Attributes:
        folder: Where.
        key: What the job depends on.
        files: Name and bytes of each file it was read from.
        offsets: Where each part begins in the list of entries; the last is the end.
    """

    folder: Path
    key: dict[str, Any]
    files: list[list[Any]]
    offsets: list[int]

    def __len__(self) -> int:
        """Give the number of parts."""
        return len(self.offsets) - 1

    def names(self, shard: str = "1/1") -> list[str]:
        """Give the names of the parts of a shard `I/N`: every N-th from the I-th on."""
        first, step = map(int, shard.split("/"))
        return [f"{part:06}" for part in range(first - 1, len(self), step)]

    def entries(self, name: str) -> Entries:
        """Give the entries of a part, int64, rising."""
        part = int(name)
        # Mapped: of a hundred million entries one part is read.
        entries = np.load(self.folder / _ENTRIES, mmap_mode="r")
        return np.sort(entries[self.offsets[part] : self.offsets[part + 1]])


def divide(spool: Spool, entries: Entries) -> tuple[Entries, list[int]]:
    """Cut entries in parts.

    Args:
        spool: Where they are.
        entries: int64, rising.

    Returns:
        The entries in the order of the parts, and where each part begins; the last is the end.
    """
    index = spool.index()
    _, first, prompt = np.unique(
        index["context_hash"][entries], return_index=True, return_inverse=True
    )
    leader = first[prompt]  # [N] the first entry with the same prompt
    order = np.argsort(leader, kind="stable")
    is_leader = leader == np.arange(len(entries))
    tokens = index["target_len"][entries] + np.where(is_leader, index["context_len"][entries], 0)
    ends = np.cumsum(tokens[order], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    size = min(max(total // _PARTS, _FEWEST_TOKENS), _MOST_TOKENS)
    part = (ends - tokens[order]) // size
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    return entries[order], [*starts.tolist(), len(entries)]


def write_plan(
    folder: Path, spool: Spool, entries: Entries, key: dict[str, Any], files: list[list[Any]]
) -> None:
    """Keep the parts of some entries in a folder; the plan is there when this ends, or not at all."""
    ordered, offsets = divide(spool, entries)
    write_whole(folder / _ENTRIES, lambda temporary: _save(temporary, ordered))
    plan = {"key": key, "files": files, "offsets": offsets}
    write_text_whole(folder / _PLAN, json.dumps(plan) + "\n")


def _save(path: Path, entries: Entries) -> None:
    with path.open("wb") as file:  # by name, numpy would add an ending
        np.save(file, entries)


def read_plan(folder: Path) -> PartPlan | None:
    """Give the parts kept in a folder; None: not planned yet."""
    try:
        plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return PartPlan(folder, plan["key"], plan["files"], plan["offsets"])

"""What a run trains on and what it is judged by, from the entries of a spool.

In: the spool of pass 1 and its records. Out: `Examples`: entries to train on, entries to validate on, none of one
question on both sides; or an error for a set that would train nothing, or train wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Spool
from fam_engine.data.packing import Entries
from fam_engine.data.records import Record
from fam_engine.data.turns import joined_turns
from fam_engine.errors import InputError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.ingest import spool_folder


@dataclass(frozen=True)
class Examples:
    """Entries of one spool.

    Attributes:
        folder: Where the spool is.
        spool: Where their token ids are.
        entries: int64[n], ascending.
        groups: Names of the questions they answer, n.
        context_len: int64, prompt tokens of every entry of the spool.
        target_len: int64, supervised tokens of every entry of the spool.
    """

    folder: Path
    spool: Spool
    entries: Entries
    groups: tuple[str, ...]
    context_len: npt.NDArray[np.int64]
    target_len: npt.NDArray[np.int64]

    @property
    def longest(self) -> int:
        """Tokens of the longest entry."""
        return int((self.context_len + self.target_len)[self.entries].max())

    def num_targets(self, entries: Entries) -> int:
        """Give the number of supervised tokens of some entries."""
        return int(self.target_len[entries].sum())

    def num_tokens(self, entries: Entries) -> int:
        """Give the number of all tokens of some entries, prompts not shared."""
        return int(self.context_len[entries].sum()) + self.num_targets(entries)


def assistant_turns(record: Record) -> list[Record]:
    """Give an example for each turn of the assistant that says or calls something, the last one included.

    Its context is everything before it; a turn of weight 0 is only that. All are of one group, that of their question.
    """
    turns = record.context
    places = [i for i, turn in enumerate(turns) if turn.is_answer]
    group = record.group or _question(record, places)
    earlier = [
        replace(
            record,
            id=f"{record.id}#{number}",
            context=turns[:place],
            verbatim=joined_turns(turns[:place]),
            response=turns[place].content,
            turn=None if turns[place].given is None else turns[place],
            group=group,
        )
        for number, place in enumerate(places, start=1)
        if turns[place].weight
    ]
    return [*earlier, replace(record, group=group)]


def _question(record: Record, places: Sequence[int]) -> str:
    """Name what a conversation asks: all before the first answer to a user, or, if none asks anything, all of it.

    A single answer to no user answers its prompt, if there is one.
    """
    turns = record.context
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user" and turn.content), None)
    if asked is not None:
        end = next((place for place in places if place > asked), len(turns))
        text = joined_turns(turns[:end])
    elif places or not any(turn.content for turn in turns):
        text = joined_turns(turns) + record.response
    else:
        text = joined_turns(turns)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def find_examples(journal: Journal, spool: Spool) -> Examples:
    """Give the entries of a spool, all of which have something to learn: pass 1 puts aside what has not."""
    rows = journal.db.execute("SELECT entry, grp FROM records ORDER BY entry").fetchall()
    folder = spool_folder(journal)
    entries = np.array([entry for entry, _ in rows], np.int64)
    return measured(folder, spool, entries, tuple(group for _, group in rows))


def measured(folder: Path, spool: Spool, entries: Entries, groups: tuple[str, ...]) -> Examples:
    """Give entries of a spool with the lengths of all of it."""
    index = spool.index()
    context_len, target_len = index["context_len"], index["target_len"]
    return Examples(
        folder,
        spool,
        entries,
        groups,
        context_len.astype(np.int64),
        target_len.astype(np.int64),
    )


def split_off(examples: Examples, share: float, *, seed: int) -> tuple[Examples, Examples]:
    """Set whole groups aside that together hold nearly a share of the entries.

    A group is taken if that brings them nearer to the share than leaving it out. Where every group is too large for
    that, the smallest is.

    Args:
        examples: All of them.
        share: Between 0 and 1.
        seed: Which groups; a group's place depends on its name and the seed alone.

    Returns:
        (for training, for validation), neither empty.

    Raises:
        InputError: There is only one group.
    """
    counts: dict[str, int] = {}
    for group in examples.groups:
        counts[group] = counts.get(group, 0) + 1
    if len(counts) < 2:
        raise InputError(
            "all records are of one group, expected at least two to set some aside",
            code="E_VALIDATION_SPLIT",
            hint="give a file with --validation",
        )
    order = sorted(counts, key=lambda name: _place(name, seed))
    aside: set[str] = set()
    left = share * len(examples.groups)
    for group in order:
        if counts[group] < 2 * left and len(aside) < len(counts) - 1:
            aside.add(group)
            left -= counts[group]
    aside = aside or {min(order, key=counts.__getitem__)}
    chosen = np.array([group in aside for group in examples.groups])
    return _part(examples, ~chosen), _part(examples, chosen)


def is_far_off(num_aside: int, wanted: float) -> bool:
    """Whether so many entries set aside are far from the number that was wanted: by half of it and more than one."""
    return abs(num_aside - wanted) > max(wanted / 2, 1)


def check_examples(examples: Examples, where: Sequence[str]) -> None:
    """Refuse examples that would train wrongly.

    Args:
        examples: Those to be trained on.
        where: Names of the data files.

    Raises:
        InputError: No end of turn is supervised.
    """
    if not examples.spool.index()["num_eot"][examples.entries].any():
        raise InputError(
            "no record ends its turn, so the model would never learn to stop",
            code="E_NO_END_OF_TURN",
            where=", ".join(where),
            hint="name `eos_token` in tokenizer_config.json, or give a --template that ends turns",
        )


def _part(examples: Examples, chosen: npt.NDArray[np.bool_]) -> Examples:
    groups = tuple(group for group, is_in in zip(examples.groups, chosen, strict=True) if is_in)
    return replace(examples, entries=examples.entries[chosen], groups=groups)


def _place(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()

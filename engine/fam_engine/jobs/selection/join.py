"""Records and their scores brought together, exactly or not at all.

In: `RecordColumns`, and the `scores.parquet` an earlier `score` run left. Out: for each record its row of the scores,
or what `score` found wrong with it. A data file that was scored under the same path is joined by file and line, any
other by record id; either way the id and the digest of prompt and response must agree. Scores of earlier releases have
no digests: of these the length of the response in bytes must agree, and a file that was scored must be what it was to
the last byte. A choice made with another answer's score would be worse than none, so whatever does not match stops the
job and is named with the remedy.

Names of files are as the user of `score` spelled them, and `../a.jsonl` is another file elsewhere. So where no record
of a file has an id of its own, it is taken for the one scored file of its name that --data does not name otherwise.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fam_engine.data.reading import hash_file
from fam_engine.errors import InputError
from fam_engine.jobs.quarantine import Quarantined
from fam_engine.jobs.selection.records import RecordColumns
from fam_engine.jobs.selection.scores import Scores, place_of
from fam_engine.measure.statistics import Ints


@dataclass(frozen=True)
class Joined:
    """Which record has which score.

    Attributes:
        records: int64[m], records that have a score, ascending.
        rows: int64[m], their rows of the scores.
        quarantined: Records that `score` left out.
    """

    records: Ints
    rows: Ints
    quarantined: list[Quarantined]


def join_scores(records: RecordColumns, scores: Scores, *, whole: bool) -> Joined:
    """Find the score of every record.

    Args:
        records: The records.
        scores: The scores.
        whole: Whether every score must have its record too; not so with `--limit`.

    Raises:
        InputError: Something does not match; the message names the first such record.
    """
    rows = np.full(len(records.line), -1, np.int64)
    by_place = _rows_by_place(scores)
    places = _scored_places(records, {*by_place, *(place for place, _ in scores.quarantined)})
    by_id = []
    for index, place in enumerate(places):
        of_file = np.flatnonzero(records.file == index)
        scored = by_place.get(place)
        if scored is None:
            by_id.append(of_file)
        else:
            rows[of_file] = _match_lines(scores, scored, records.line[of_file])
    if any(len(part) for part in by_id):
        _match_ids(records, scores, np.concatenate(by_id), rows)
    quarantined = _left_out(records, scores, rows, places)
    found = np.flatnonzero(rows >= 0)
    if scores.text_digests() is None:
        _check_files(records, scores, places)
    _check_equal(records, scores, found, rows[found])
    _check_complete(scores, rows[found], whole=whole)
    return Joined(found, rows[found], quarantined)


def _scored_places(records: RecordColumns, scored: Set[str]) -> list[str]:
    """Give the place under which each file was scored, or where it is if it was not."""
    places = [place_of(file.name) for file in records.files]
    left = [place for place in scored if place not in places]
    names = Counter(map(os.path.basename, left)), Counter(map(os.path.basename, places))
    known = {os.path.basename(place): place for place in left}
    everything = np.arange(len(records.line))
    unnamed = _default_ids(records, everything, records.ids.combine_chunks())
    for index, place in enumerate(places):
        name = os.path.basename(place)
        is_moved = place not in scored and names[0][name] == names[1][name] == 1
        if is_moved and unnamed[records.file == index].all():
            places[index] = known[name]
    return places


def _rows_by_place(scores: Scores) -> dict[str, Ints]:
    """Give the rows of each scored file."""
    encoded = scores.table["file"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))
    names = encoded.dictionary.to_pylist()
    return {place_of(n): part for n, part in zip(names, np.split(order, ends[:-1]), strict=True)}


def _match_lines(scores: Scores, scored: Ints, lines: Ints) -> Ints:
    """Give the row of each line, -1 where there is none."""
    known = scores.table["line"].to_numpy().astype(np.int64)[scored]
    if (np.diff(known) <= 0).any():
        raise InputError(
            "holds the same file twice", code="E_SCORES", where=str(scores.path), hint="score again"
        )
    places = np.minimum(np.searchsorted(known, lines), len(known) - 1)
    found: Ints = np.where(known[places] == lines, scored[places], -1)
    return found


def _match_ids(records: RecordColumns, scores: Scores, wanted: Ints, rows: Ints) -> None:
    """Fill in the rows of records joined by id."""
    known = scores.table["id"].combine_chunks()
    ids = records.ids.take(pa.array(wanted)).combine_chunks()
    found = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy()
    rows[wanted] = found
    used = np.unique(found[found >= 0])
    for name, values in (("scores", known), ("data", ids)):
        counts = values.value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        needed = known.take(pa.array(used))
        twice = repeated.filter(pc.is_in(repeated, value_set=needed))
        if len(twice):
            raise InputError(
                f"the id `{twice[0]}` is not unique in the {name}, so it cannot tell which score "
                "is whose",
                code="E_SCORES_MISMATCH",
                where=_where(records, wanted[0]),
                hint="give --data the path that was scored, so that lines tell records apart",
            )


def _left_out(
    records: RecordColumns, scores: Scores, rows: Ints, places: Sequence[str]
) -> list[Quarantined]:
    """Give the records without a score that `score` itself left out; refuse any other."""
    quarantined: list[Quarantined] = []
    for record in np.flatnonzero(rows < 0).tolist():
        file, line = int(records.file[record]), int(records.line[record])
        known = scores.quarantined.get((places[file], line))
        if known is None:
            raise _no_score(records, scores, record, places[file])
        quarantined.append((records.files[file].name, line, None, *known))
    return quarantined


def _no_score(records: RecordColumns, scores: Scores, record: int, place: str) -> InputError:
    files = scores.table["file"].unique().to_pylist()
    if place in map(place_of, files):
        found = f"has no score in {scores.path}"
        hint = "score the whole file, or use the --limit it was scored with"
    else:
        found = (
            f"was not scored under this path, and {scores.path} has no id `{records.ids[record]}`"
        )
        more = f" and {len(files) - 1:,} more" * (len(files) > 1)
        hint = f"give --data what was scored ({files[0]}{more}), or score this file"
    return InputError(found, code="E_SCORES_MISMATCH", where=_where(records, record), hint=hint)


def _check_files(records: RecordColumns, scores: Scores, places: Sequence[str]) -> None:
    """Refuse a file that changed, where nothing tells which of its records did."""
    for file, place in zip(records.files, places, strict=True):
        known = scores.data_hashes.get(place)
        if known is not None and known != hash_file(file.path):
            raise InputError(
                "is not the file that was scored, to the last byte; an earlier release scored it, "
                "so nothing tells which records are still the same",
                code="E_SCORES_MISMATCH",
                where=file.name,
                hint=f"score it again, or give it as it was scored into {scores.path}",
            )


def _check_equal(records: RecordColumns, scores: Scores, found: Ints, rows: Ints) -> None:
    """Refuse a record whose id, length or text is not the one that was scored."""
    taken = pa.array(rows)
    known_bytes = scores.table["num_bytes"].to_numpy().astype(np.int64)[rows]
    known_ids = scores.table["id"].take(taken).combine_chunks()
    ids = records.ids.take(pa.array(found)).combine_chunks()
    same_id = pc.equal(ids, known_ids).to_numpy(zero_copy_only=False)
    # An id that nobody wrote is `file:line` and changes with the spelling of the path.
    unnamed = _default_ids(records, found, ids)
    for wrong, name, left, right in (
        (~same_id & ~unnamed, "id", ids, known_ids),
        (
            (known_bytes != records.num_bytes[found]) & (records.num_bytes[found] >= 0),
            "response length in bytes",
            records.num_bytes[found],
            known_bytes,
        ),
    ):
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            reason = f"has the {name} {left[at]}, what was scored had {right[at]}"
            raise _changed(records, scores, found[at], reason)
    digests = scores.text_digests()
    if digests is not None and (wrong := digests[rows] != records.text_digest[found]).any():
        at = int(np.flatnonzero(wrong)[0])
        reason = "has another prompt or response than what was scored"
        raise _changed(records, scores, found[at], reason)


def _changed(records: RecordColumns, scores: Scores, record: int, reason: str) -> InputError:
    return InputError(
        reason,
        code="E_SCORES_MISMATCH",
        where=_where(records, record),
        hint=f"the file changed after it was scored into {scores.path}; score it again",
    )


def _default_ids(records: RecordColumns, found: Ints, ids: pa.Array) -> Any:  # noqa: ANN401
    names = pa.array([file.name for file in records.files]).take(pa.array(records.file[found]))
    lines = pa.array(records.line[found]).cast(pa.string())
    default = pc.binary_join_element_wise(names, lines, ":")
    return pc.equal(ids, default).to_numpy(zero_copy_only=False)


def _check_complete(scores: Scores, rows: Ints, *, whole: bool) -> None:
    """Refuse scores without a record: a choice among some of the answers is another choice."""
    used = np.bincount(rows, minlength=scores.table.num_rows)
    if (used > 1).any():
        name = scores.table["id"][int(used.argmax())]
        raise InputError(
            f"holds one score of the id `{name}`, --data holds {used.max()} records of it",
            code="E_SCORES_MISMATCH",
            where=str(scores.path),
            hint="give --data only what was scored",
        )
    missing = np.flatnonzero(used == 0)
    if whole and len(missing):
        row = scores.table.slice(int(missing[0]), 1).to_pylist()[0]
        raise InputError(
            f"holds {len(missing):,} scores without a record in --data, the first of "
            f"{row['file']}:{row['line']}",
            code="E_SCORES_MISMATCH",
            where=str(scores.path),
            hint="give --data every file that was scored",
        )


def _where(records: RecordColumns, record: int) -> str:
    return f"{records.files[records.file[record]].name}:{records.line[record]}"

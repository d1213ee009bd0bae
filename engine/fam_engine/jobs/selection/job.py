"""The selection job from its settings to its files.

In: a `SelectConfig` and somebody to tell about progress. Out: the files of the output folder and the summary. The
data is read twice, once for labels and once for the texts of what was chosen; in between everything is columns. It is
minutes at most for a million records, so a job that was stopped simply starts over; its folder is held and keyed like
any other, so that two selections never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fam_engine.config import SelectConfig, nearest
from fam_engine.data.files import write_json_whole
from fam_engine.data.reading import hash_file
from fam_engine.errors import UsageError
from fam_engine.jobs.data_files import find_distinct_files, note_unseen_columns
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import check_unclaimed, claimed
from fam_engine.jobs.quarantine import write_quarantine
from fam_engine.jobs.selection.choice import SELECTED
from fam_engine.jobs.selection.files import write_dropped, write_selected
from fam_engine.jobs.selection.join import Joined, join_scores
from fam_engine.jobs.selection.overlap import overlap_with_test
from fam_engine.jobs.selection.records import (
    RecordColumns,
    read_columns,
    selected_rows,
)
from fam_engine.jobs.selection.scores import Scores, read_scores
from fam_engine.jobs.selection.selected import Selection, select_records
from fam_engine.measure.familiarity import METRICS, Metric
from fam_engine.version import __version__

if TYPE_CHECKING:
    # Importing it for real would load torch, which a selection does without.
    from fam_engine.jobs.progress import Progress

OUTPUTS = ("selected.jsonl", "dropped.parquet", "quarantine.jsonl", "summary.json")


def run_select(
    config: SelectConfig, progress: Progress, *, dry_run: bool = False
) -> dict[str, Any]:
    """Select records.

    Args:
        config: What to select, from where.
        progress: Whom to tell.
        dry_run: Choose, but write nothing.

    Returns:
        What `summary.json` holds.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; nothing was written.
    """
    metric = _metric(config.metric)
    _check_settings(config)
    if not dry_run:
        check_unclaimed(config.out, OUTPUTS)
    scores = read_scores(config.scores, metric)
    with Interrupts() as interrupts:
        advance = interrupts.after(progress.advance)
        records, joined = _read(config, scores, progress, advance)
        test = find_distinct_files(config.test)
        overlap, tested = overlap_with_test(
            records.files, test, columns=config.map, limit=config.limit
        )
        selection = select_records(config, metric, records, joined, scores, overlap)
        settings = config.model_dump(mode="json")
        summary = {**selection.summary, "test": tested, "settings": settings}
        if not dry_run:
            progress.start("writing", int(summary["records"]["selected"]), "records")
            key = _run_key(config, [file.path for file in records.files])
            with claimed(config.out, key, OUTPUTS) as journal:
                if journal.finished(config.out / name for name in OUTPUTS):
                    progress.note(f"{config.out} is complete already")
                    return summary
                _write(config, records, joined, scores, selection, advance)
                write_json_whole(config.out / "summary.json", summary)
                with journal.commit():
                    journal.put("finished", True)
    return summary


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise UsageError(
            f"`{name}` is no metric to select by{nearest(name, list(METRICS))}",
            code="E_METRIC",
            hint=f"one of {', '.join(METRICS)}",
        )
    return METRICS[name]


def _check_settings(config: SelectConfig) -> None:
    """Refuse settings that contradict each other."""
    if config.pick and config.band:
        raise UsageError(
            "--pick and --band are two answers to one question",
            code="E_CONFIG_VALUE",
            hint="give one of them",
        )
    shortest, longest = config.min_tokens, config.max_tokens
    if shortest is not None and longest is not None and shortest > longest:
        raise UsageError(
            f"--min-tokens {shortest} is above --max-tokens {longest}", code="E_CONFIG_VALUE"
        )
    limited = config.band or config.budget or config.quota
    if config.per == "all" and not limited:
        raise UsageError(
            "--per all takes the first of all records and needs to know how many",
            code="E_CONFIG_VALUE",
            hint="give --budget, --quota or --band",
        )
    if config.out.resolve() == config.scores.resolve().parent:
        raise UsageError(
            "is the folder of the scores, whose summary it would replace",
            code="E_OUT",
            where=str(config.out),
            hint="choose another --out",
        )


def _run_key(config: SelectConfig, data: list[Path]) -> dict[str, Any]:
    """Give all that a selection depends on."""
    settings = config.model_dump(mode="json", exclude={"data", "scores", "test", "out"})
    return {
        "command": "select",
        "data": [hash_file(path) for path in data],
        "names": list(config.data),
        "scores": hash_file(config.scores),
        "test": [hash_file(file.path) for file in find_distinct_files(config.test)],
        **settings,
        "version": __version__,
    }


def _read(
    config: SelectConfig, scores: Scores, progress: Progress, advance: Callable[[int], None]
) -> tuple[RecordColumns, Joined]:
    files = find_distinct_files(config.data)
    progress.start("reading", None, "records")
    note_unseen_columns(files, config.map, progress.note)
    records = read_columns(files, columns=config.map, limit=config.limit, advance=advance)
    for name, form in records.forms.items():
        progress.note(f"{name}: {form}")
    return records, join_scores(records, scores, whole=config.limit is None)


def _write(
    config: SelectConfig,
    records: RecordColumns,
    joined: Joined,
    scores: Scores,
    selection: Selection,
    advance: Callable[[int], None],
) -> None:
    out = config.out
    chosen = np.flatnonzero(selection.reasons == SELECTED)
    rows = selected_rows(records.files, config.map, records.position[joined.records[chosen]])
    labels = _labels(scores.table.take(pa.array(joined.rows[chosen])), selection)
    write_selected(out / "selected.jsonl", rows, labels, advance)
    ids = scores.table["id"].take(pa.array(joined.rows)).combine_chunks()
    write_dropped(out / "dropped.parquet", ids, selection.reasons)
    write_quarantine(out / "quarantine.jsonl", selection.quarantined)


def _labels(table: pa.Table, selection: Selection) -> Callable[[int], Mapping[str, Any]]:
    """Give what a chosen record is labelled with; its value is the metric of the scores table."""
    by = selection.selected_by
    values, ids, sources = table[by["metric"]], table["id"], table["source"]

    def label(place: int) -> Mapping[str, Any]:
        return {
            "id": ids[place].as_py(),
            "source": sources[place].as_py(),
            "selected_by": {**by, "value": values[place].as_py()},
        }

    return label

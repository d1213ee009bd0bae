"""The tokenizing job: records through the one text-to-ids rule, and what they come to.

In: a `TokenizeConfig`. Out: the summary, and with an output folder `summary.json`, `quarantine.jsonl` and the ids where
asked for. The records pass through scoring's own pass 1, so the counts are those of a scoring or training run with the
same settings; its spool lies in a temporary folder, for the job is too short to be resumed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fam_engine._rust_tokenize import Spool
from fam_engine.config import TokenizeConfig
from fam_engine.data.files import write_json_whole
from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.beginning import longest_sequence, open_encoder, reading
from fam_engine.jobs.data_files import find_distinct_files
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, claimed
from fam_engine.jobs.quarantine import read_quarantine, write_quarantine
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.jobs.tokenizing.checking import TextCheck
from fam_engine.jobs.tokenizing.counting import count_records
from fam_engine.jobs.tokenizing.files import write_ids
from fam_engine.model.folders import resolve_model
from fam_engine.version import __version__

if TYPE_CHECKING:
    # Importing it for real would load torch, which this job does without.
    from fam_engine.jobs.progress import Progress

# Of a folder that names no limit.
_NO_LIMIT = 2**31 - 1


def _outputs(config: TokenizeConfig) -> tuple[str, ...]:
    """Give the names of the files a job leaves in its folder."""
    ids = () if config.ids is None else (f"ids.{config.ids}",)
    return (*ids, "summary.json", "quarantine.jsonl")


def run_tokenize(config: TokenizeConfig, progress: Progress) -> dict[str, Any]:
    """Tokenize a job's records.

    Returns:
        What `summary.json` holds.

    Raises:
        FamEngineError: Data, template or tokenizer that cannot be used; see the subclasses.
        Interrupted: A signal came.
    """
    watch = Stopwatch()
    if config.out is not None:
        check_unclaimed(config.out, _outputs(config))
    folder, _ = resolve_model(config.model, download=config.download)
    max_length = longest_sequence(_longest(folder), config.max_length)
    encoder = open_encoder(config, folder, boundary=config.boundary)
    check = TextCheck(encoder) if config.verify else None
    with contextlib.closing(encoder), _pass_1(config, encoder, max_length, check, progress) as done:
        journal, spool = done
        summary = {
            **count_records(journal, spool, capacity=config.capacity),
            "max_length": None if max_length == _NO_LIMIT else max_length,
            "tokenizer": {
                "engine": encoder.tokenizer.engine,
                "vocab_size": encoder.tokenizer.vocab_size,
                "has_template": encoder.template is not None,
            },
            "verify": check.result() if check else None,
            "settings": config.model_dump(mode="json"),
            "versions": {"fam-engine": __version__},
            "seconds": watch.seconds(),
        }
        if config.out is not None:
            _write(config, config.out, journal, spool, summary)
    return summary


@contextlib.contextmanager
def _pass_1(
    config: TokenizeConfig,
    encoder: TextEncoder,
    max_length: int,
    check: TextCheck | None,
    progress: Progress,
) -> Iterator[tuple[Journal, Spool]]:
    """Run scoring's pass 1 in a temporary folder."""
    files = find_distinct_files(config.data)
    plan = IngestPlan(
        max_length=max_length,
        on_long=config.on_long,
        columns=config.map,
        limit=config.limit,
        expand=check.see if check else None,
    )
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as name,
        Interrupts() as interrupts,
        Journal(Path(name), {}, ingest.SCHEMA) as journal,
    ):
        if encoder.read_otherwise:
            progress.note(encoder.read_otherwise)
        with reading(journal, config, files, progress):
            spool = ingest_records(
                journal, encoder, plan, files, interrupts.after(progress.advance)
            )
        yield journal, spool


def _longest(folder: Path) -> int:
    """Give the longest sequence the model takes; a folder with a tokenizer alone sets no limit."""
    name, code = "config.json", "E_MODEL_CONFIG"
    if not (folder / name).exists():
        return _NO_LIMIT
    config = read_json_object(plain_file(folder, name, code=code), code=code)
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) and value > 1 else _NO_LIMIT


def _write(
    config: TokenizeConfig, out: Path, journal: Journal, spool: Spool, summary: dict[str, Any]
) -> None:
    # Whatever was counted before, and with which settings: no progress is gone on with.
    with claimed(out, {"command": "tokenize"}, _outputs(config)):
        if config.ids is not None:
            write_ids(out / f"ids.{config.ids}", journal.db, spool)
        write_quarantine(out / "quarantine.jsonl", read_quarantine(journal.db))
        write_json_whole(out / "summary.json", summary)

"""An adapter made part of its model, and what that does to the scores.

In: a `MergeConfig`. Out: a plain checkpoint, and, where records are given, their perplexity under the model alone, with
the adapter, and merged. An adapter trained over NF4 weights is served over 16-bit ones most of the time: the last two
differ then, and the difference is worth knowing before publishing; answer by answer, and before anything is merged,
`jobs.verifying` gives it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from fam_engine.config import NOWHERE, MergeConfig, Precision, ScoreConfig
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.jobs.data_files import find_files
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.sources import check_adapter
from fam_engine.model.folders import resolve_model
from fam_engine.model.merging import Merge, check_out, plan_merge, served_precision


def run_merge(config: MergeConfig, progress: Progress) -> JobOutcome:
    """Merge, and score before and after.

    Returns:
        In its summary `out`, `base`, and `scores`: a list of model name, precision, number of
        records and perplexities, each with an interval; empty without records.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
    """
    merge = _planned(config)
    progress.start("merging", None, "tensors")
    merge.write(config.out)
    scores, num_bad = [], 0
    for name, model, adapter, precision in (
        ("model alone", merge.model, None, config.precision),
        ("model and adapter", merge.model, config.adapter, config.precision),
        ("merged model", config.out, None, served_precision(config.precision)),
    ):
        if config.data:
            progress.note(f"scoring with the {name}, {precision}")
            row, num_bad = _score(config, model, adapter, precision, progress)
            scores.append({"model": name, "precision": precision, **row})
    summary = {"out": str(config.out), "base": config.base, "scores": scores}
    return JobOutcome(summary, num_bad)


def forecast_merge(config: MergeConfig, progress: Progress) -> JobOutcome:
    """Check all that a merge needs, and say what it would write; writes nothing.

    Returns:
        In its summary `base`, `num_matrices` and `rank` of the adapter, `files` and `num_bytes` of
        tensors to write, `free_bytes` of the disk, None where no folder was given.

    Raises:
        FamEngineError: As `run_merge` would.
    """
    progress.start("checking", None, "tensors")
    merge = _planned(config)
    if config.out != NOWHERE:
        check_out(config.out)
    summary = {
        "base": config.base,
        "num_matrices": len(merge.adapter.matrices),
        "rank": merge.adapter.rank,
        "files": list(merge.shards()),
        "num_bytes": merge.num_bytes,
        "free_bytes": None if config.out == NOWHERE else _free_bytes(config.out),
    }
    return JobOutcome(summary, 0)


def _planned(config: MergeConfig) -> Merge:
    folder, _ = resolve_model(config.model, download=config.download)
    check_adapter(config.adapter)
    find_files(config.data)
    load_tokenizer(folder)
    return plan_merge(folder, config.adapter, base=config.base)


def _free_bytes(out: Path) -> int:
    """Give what is free where a folder would be."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def _score(
    config: MergeConfig, model: Path, adapter: Path | None, precision: Precision, progress: Progress
) -> tuple[dict[str, Any], int]:
    """Score the records with one model; give its figures and the number of records left out."""
    with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
        settings = ScoreConfig(
            model=str(model),
            adapter=adapter,
            precision=precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
            data=config.data,
            template=config.template,
            chat_template_kwargs=config.chat_template_kwargs,
            limit=config.limit,
            out=Path(folder) / "scores",
        )
        outcome = run_score(settings, progress)
    overall = outcome.summary["overall"]
    return {"n": overall["n"], "perplexity": overall["perplexity"]}, outcome.num_quarantined

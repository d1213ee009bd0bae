"""An adapter made part of its model, and what that does to the scores.

In: a `MergeConfig`. Out: a plain checkpoint, and, where records are given, their perplexity under the model alone, with
the adapter, and merged. An adapter trained over NF4 weights is served over 16-bit ones most of the time: the last two
differ then, and the difference is worth knowing before publishing; answer by answer, and before anything is merged,
`jobs.verifying` gives it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fam_engine.config import MergeConfig, Precision, ScoreConfig
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.jobs.data_files import find_files
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.sources import check_adapter
from fam_engine.model.folders import resolve_model
from fam_engine.model.merging import merge, served_precision


def run_merge(config: MergeConfig, progress: Progress) -> JobOutcome:
    """Merge, and score before and after.

    Returns:
        In its summary `out`, `base`, and `scores`: a list of model name, precision, number of
        records and perplexities, each with an interval; empty without records.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
    """
    folder, _ = resolve_model(config.model, download=config.download)
    check_adapter(config.adapter)
    find_files(config.data)
    load_tokenizer(folder)
    progress.start("merging", None, "tensors")
    merge(folder, config.adapter, config.out, base=config.base)
    scores, num_bad = [], 0
    for name, model, adapter, precision in (
        ("model alone", folder, None, config.precision),
        ("model and adapter", folder, config.adapter, config.precision),
        ("merged model", config.out, None, served_precision(config.precision)),
    ):
        if config.data:
            progress.note(f"scoring with the {name}, {precision}")
            row, num_bad = _score(config, model, adapter, precision, progress)
            scores.append({"model": name, "precision": precision, **row})
    summary = {"out": str(config.out), "base": config.base, "scores": scores}
    return JobOutcome(summary, num_bad)


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

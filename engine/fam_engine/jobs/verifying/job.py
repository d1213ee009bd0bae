"""The verification of an adapter, from its settings to a verdict.

In: a `VerifyConfig` and somebody to tell about progress. Out: a summary: how far every way of serving the adapter is
from the way it was trained, and whether that is within the tolerance of what lies between them. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fam_engine.config import VerifyConfig
from fam_engine.jobs.data_files import find_distinct_files
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.sources import check_adapter
from fam_engine.jobs.verifying.over_http import Server
from fam_engine.jobs.verifying.probe import Probe, opened_probe
from fam_engine.jobs.verifying.tolerances import TOLERANCES, Tolerance
from fam_engine.jobs.verifying.ways import OwnEngine, Way
from fam_engine.measure.agreement import (
    TokenLogprobs,
    agreement,
    changed_picks,
    most_changed,
)
from fam_engine.model.config import ModelConfig
from fam_engine.model.folders import resolve_model
from fam_engine.model.merging import served_precision

_Answers = Mapping[Way, TokenLogprobs]


def run_verify(config: VerifyConfig, progress: Progress) -> JobOutcome:
    """Verify an adapter.

    Returns:
        In its summary `reference`, `ways` (the reference first; mean over all tokens, figures of
        `measure.agreement.agreement` against the reference, `tolerance` and `is_within`, both None
        for the model alone), `server` (the `closest` of our ways, the figures against that, whether
        it `has_adapter`), `answers` (the mean of each in every way), and `is_within`, the verdict.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came.
    """
    folder, _ = resolve_model(config.model, download=config.download)
    check_adapter(config.verify)
    files = find_distinct_files(config.data)
    server = None if config.url is None else Server(config.url, config.served_model_name)
    with (
        Interrupts() as interrupts,
        opened_probe(
            config, folder, files, progress, interrupts.check, max_ids=_max_ids(server, folder)
        ) as probe,
    ):
        engine = OwnEngine(config, folder, probe, progress, interrupts)
        answers = dict(engine.ways())
        reference = next(iter(answers))
        served = None
        if server is not None:
            served = _ask(config, server, answers, probe, progress, interrupts)
    rows = [_row(way, answers, probe) for way in answers]
    verdicts = [row["is_within"] for row in (*rows, *([served] if served else []))]
    summary = {
        "command": "verify",
        "reference": reference.name,
        "ways": rows,
        "server": served,
        "is_within": False not in verdicts,
        "records": _counts(probe),
        "answers": _answers(answers, probe),
        "settings": config.model_dump(mode="json"),
    }
    return JobOutcome(summary, sum(probe.left_out.values()))


def _max_ids(server: Server | None, model: Path) -> int | None:
    """Give the most tokens a server can be asked about: it has to have room for the one it writes."""
    if server is None:
        return None
    return (server.max_length or ModelConfig.from_folder(model).max_position_embeddings) - 1


def _row(way: Way, answers: _Answers, probe: Probe) -> dict[str, Any]:
    """Compare a way with the reference, the first of all."""
    reference, own = next(iter(answers.values())), answers[way]
    means = reference.nll_means(), own.nll_means()
    figures = agreement(reference, own)
    tolerance = TOLERANCES[way.rounding] if way.has_adapter else None
    return {
        "name": way.name,
        "precision": way.precision,
        "nll_mean": -float(own.logprobs.mean()),
        **figures,
        "picks": changed_picks(probe.ids, probe.groups, *means),
        "most_changed": most_changed(probe.ids, *means),
        **_verdict(tolerance, figures),
    }


def _verdict(tolerance: Tolerance | None, figures: Mapping[str, Any]) -> dict[str, Any]:
    if tolerance is None:
        return {"tolerance": None, "is_within": None}
    return {"tolerance": vars(tolerance), "is_within": tolerance.holds(figures)}


def _ask(
    config: VerifyConfig,
    server: Server,
    answers: dict[Way, TokenLogprobs],
    probe: Probe,
    progress: Progress,
    interrupts: Interrupts,
) -> dict[str, Any]:
    """Ask a server, and say which of our own ways it is closest to; what it says joins `answers`."""
    progress.start(f"asking {server.url}", len(probe.ids), "answers")
    served = server.answers(probe, interrupts.after(progress.advance))
    apart = {way: agreement(own, served) for way, own in answers.items()}
    closest = _closest(apart)
    answers[Way("over HTTP", None, config.precision, closest.has_adapter)] = served
    verdict = _verdict(TOLERANCES[served_precision(config.precision)], apart[closest])
    if not closest.has_adapter:
        verdict["is_within"] = False
    return {
        "url": server.url,
        "model": server.model,
        "closest": closest.name,
        "has_adapter": closest.has_adapter,
        **apart[closest],
        **verdict,
    }


def _closest(apart: Mapping[Way, Mapping[str, Any]]) -> Way:
    """Say which way a server computes; one without the adapter only where that is clear.

    An adapter that changes nothing leaves a server as near to the model alone as to any other way.
    """

    def size(way: Way) -> float:
        return float(apart[way]["mean_abs"])

    nearest = min((way for way in apart if way.has_adapter), key=size)
    alone = min((way for way in apart if not way.has_adapter), key=size)
    return alone if 2 * size(alone) < size(nearest) else nearest


def _counts(probe: Probe) -> dict[str, Any]:
    num_left_out = sum(probe.left_out.values())
    return {
        "read": len(probe.ids) + num_left_out,
        "compared": len(probe.ids),
        "tokens": int(probe.lengths.sum()),
        "left_out": num_left_out,
        "left_out_by_code": dict(probe.left_out),
    }


def _answers(answers: _Answers, probe: Probe) -> list[dict[str, Any]]:
    names = [way.name for way in answers]
    means = np.stack([own.nll_means() for own in answers.values()], axis=1)
    return [
        {"id": one, "num_tokens": int(length), "nll_mean": dict(zip(names, row, strict=True))}
        for one, length, row in zip(probe.ids, probe.lengths, means.tolist(), strict=True)
    ]

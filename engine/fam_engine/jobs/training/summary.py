"""What a finished run has to say: counts, the loss before and after, time, settings.

In: the parts of the run, its counters, its log. Out: the dictionary of `summary.json`, which card, terminal and
metadata read too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fam_engine.jobs.running import dtype_name, peak_memory
from fam_engine.jobs.training.checkpoints import RunState
from fam_engine.jobs.training.log import NAME as LOG
from fam_engine.jobs.training.log import read_log
from fam_engine.jobs.training.loop import LoopParts, planned_steps
from fam_engine.jobs.training.prepare import Prepared
from fam_engine.model.adapter_consumers import objections
from fam_engine.model.adapter_files import peft_config
from fam_engine.model.lora import LoraSpec

# Steps averaged at most for "first" and "last": one step's answers are too few to compare.
_MOST_AVERAGED = 20
# Steps differ in their answers; beyond this it is the model that has changed.
_WORSE_NATS = 0.1
# Of the tokens, by weight: with fewer the adapter is as good as the untrained model.
_LITTLE_KEPT = 0.01


def summarize_run(
    parts: LoopParts,
    data: Prepared,
    state: RunState,
    quarantined: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Give the summary.

    Args:
        parts: Of the loop.
        data: The job's input.
        state: The counters at the end.
        quarantined: Records left out, by code.
        seconds: Time this process took.
    """
    lines = list(read_log(parts.config.out / LOG))
    training = _training(parts, state, [line for line in lines if line["step"] > 0])
    validation = _validation(lines, state)
    flags = count_flags(data)
    return {
        "examples": count_examples(data, quarantined),
        "sources": _sources(data),
        "flags": flags,
        "training": training,
        "validation": validation,
        "remarks": _remarks(training, validation, flags, parts.model.spec),
        "performance": _performance(parts, state, seconds),
        "settings": _settings(parts, data),
        "key": data.journal.get("key"),
    }


def count_examples(data: Prepared, quarantined: Mapping[str, int]) -> dict[str, Any]:
    """Count what became of the records (of their turns, with `--train-on all-assistant`)."""
    num_validation = len(data.validation.entries) if data.validation else 0
    num_kept = data.journal.get("ingested")["records"]
    num_kept += data.journal.get("validation_records") or 0
    num_bad = sum(quarantined.values())
    return {
        "read": num_kept + num_bad,
        "trained": len(data.train.entries),
        "validation": num_validation,
        "quarantined": num_bad,
        "quarantined_by_code": dict(quarantined),
        "skipped": num_kept - len(data.train.entries) - num_validation,
    }


def count_flags(data: Prepared) -> dict[str, int]:
    """Count what is unusual about the records, by flag."""
    query = "SELECT value, COUNT(*) FROM records, json_each(flags) GROUP BY value ORDER BY value"
    return dict(data.journal.db.execute(query))


def _sources(data: Prepared) -> dict[str, int]:
    trained = set(data.train.entries.tolist())
    counts: dict[str, int] = {}
    for entry, source in data.journal.db.execute("SELECT entry, source FROM records"):
        if entry in trained:
            counts[source] = counts.get(source, 0) + 1
    return dict(sorted(counts.items()))


def _training(
    parts: LoopParts, state: RunState, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    planned = planned_steps(parts.config, parts.train)
    steps_per_epoch = math.ceil(len(parts.train.entries) / parts.config.batch_size)
    window = max(1, min(_MOST_AVERAGED, len(lines) // 2))
    return {
        "steps": state.step,
        "planned_steps": planned,
        "stopped_early": state.step < planned,
        "epochs": state.step / steps_per_epoch,
        "tokens": state.tokens,
        "tokens_an_epoch": parts.train.num_targets(parts.train.entries),
        "kept": _mean(lines, "kept"),
        "nll_first": _mean(lines[:window], "nll"),
        "nll_last": _mean(lines[-window:], "nll"),
        "loss_first": _mean(lines[:window], "loss"),
        "loss_last": _mean(lines[-window:], "loss"),
    }


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """Give the mean of a column over the tokens of some steps."""
    tokens = math.fsum(line["tokens"] for line in lines)
    return math.fsum(line[name] * line["tokens"] for line in lines) / tokens


def _validation(lines: Sequence[Mapping[str, Any]], state: RunState) -> dict[str, Any] | None:
    measured = [line for line in lines if "validation_loss" in line]
    if not measured:
        return None
    return {
        "before": measured[0]["validation_loss"],
        "best": state.best_loss,
        "best_step": state.best_step,
        "last": measured[-1]["validation_loss"],
    }


def _remarks(
    training: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    flags: Mapping[str, int],
    spec: LoraSpec,
) -> list[str]:
    """Say what a reader should know before trusting the adapter."""
    remarks = []
    if training["kept"] < _LITTLE_KEPT:
        remarks.append(
            f"The loss gave the tokens {100 * training['kept']:.2g}% of their weight, so next to nothing was learnt: "
            "another --loss, or another threshold of it, keeps more."
        )
    if training["nll_last"] > training["nll_first"] + _WORSE_NATS:
        remarks.append(
            "The answers trained on were more surprising at the end than at first: "
            "a lower --learning-rate may help."
        )
    if validation is not None and validation["best"] >= validation["before"]:
        remarks.append("Validation never improved on the untrained model.")
    if count := flags.get("prompt_cut"):
        remarks.append(f"{count:,} prompts were cut to fit.")
    if count := flags.get("template_altered"):
        remarks.append(f"The chat template would have altered {count:,} answers.")
    found = objections(peft_config(spec, None), ())
    remarks += [f"{one.consumer} {one.found}: {one.remedy}." for one in found]
    return remarks


def _performance(parts: LoopParts, state: RunState, seconds: float) -> dict[str, Any]:
    return {
        "num_processes": parts.peers.size,
        "seconds_total": seconds,
        "seconds_training": state.seconds,
        "supervised_tokens_per_second": state.tokens / max(state.seconds, 1e-9),
        **peak_memory(),
        "memory_plan": asdict(parts.memory),
    }


def _settings(parts: LoopParts, data: Prepared) -> dict[str, Any]:
    return {
        **parts.config.model_dump(mode="json"),
        "revision": data.sources.revision,
        "compute_dtype": dtype_name(parts.decoder),
        "device": str(parts.decoder.device),
    }

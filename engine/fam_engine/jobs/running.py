"""What every job does alike: opens its model, finds itself finished, says what it took.

In: settings, a journal, this process. Out: a decoder, a summary; words for its user, figures for `summary.json`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fam_engine.config import HOW_IT_RUNS, BaseModelSettings, SamplingSettings
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.sources import Sources, open_model
from fam_engine.jobs.spending import spent_so_far
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.measure.answers.unit_tests import confines_files
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.requests import Sampling


def finished_summary(
    journal: Journal, out: Path, outputs: Sequence[str], told: Progress
) -> dict[str, Any] | None:
    """Give the summary of a job that is finished and whose files are still there; else None."""
    summary: dict[str, Any] | None = journal.finished(out / name for name in outputs)
    if summary is not None:
        told.note(f"{out} is complete already")
    return summary


def load_told(config: BaseModelSettings, sources: Sources, told: Progress) -> Decoder:
    """Load the model of a job and say what it is."""
    told.start("loading the model", None, "")
    decoder = open_model(config, sources)
    told.note(describe(decoder))
    return decoder


def note_about_threads(num_processes: int, told: Progress) -> None:
    """Say where the threads of several processes get in each other's way on the CPU."""
    num_threads, num_cores = num_processes * torch.get_num_threads(), os.cpu_count() or 1
    if num_threads > num_cores:
        told.note(
            f"{num_processes} processes have {num_threads} threads on {num_cores} cores; with "
            f"OMP_NUM_THREADS={max(num_cores // num_processes, 1)} they do not get in each other's way"
        )


def sampling_of(config: SamplingSettings, stop: tuple[str, ...]) -> Sampling:
    """Give how a model is to write.

    Raises:
        UsageError: A stop string that cannot be one.
    """
    return Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=stop,
    )


def judging_settings(*, has_code: bool) -> dict[str, Any]:
    """Say in a summary how code was held while it was judged; nothing where there was none."""
    return {"file_access_confined": confines_files()} if has_code else {}


def writing_performance(journal: Journal, watch: Stopwatch) -> dict[str, float]:
    """Give the figures of a job that writes texts, its earlier runs included."""
    tokens, seconds = spent_so_far(journal)
    return {
        "seconds_total": watch.seconds(),
        "seconds_generating": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        **peak_memory(),
    }


def settings_told(config: BaseModelSettings, sources: Sources, decoder: Decoder) -> dict[str, Any]:
    """Give a job's settings for its summary, with what was decided for its user."""
    return {
        **config.model_dump(mode="json", exclude=HOW_IT_RUNS),
        "revision": sources.revision,
        "compute_dtype": dtype_name(decoder),
        "device": str(decoder.device),
    }


def dtype_name(decoder: Decoder) -> str:
    """Give the compute dtype's name, such as `bfloat16`."""
    return str(decoder.compute_dtype).removeprefix("torch.")


def describe(decoder: Decoder) -> str:
    """Say how large the model is, how it is held and where it computes."""
    return (
        f"{decoder.num_parameters / 1e6:.1f} M parameters, {decoder.precision} weights, "
        f"{dtype_name(decoder)} on {decoder.device}"
    )


def peak_memory() -> dict[str, int]:
    """Give the most bytes this process has held, and of a GPU if there is one."""
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak

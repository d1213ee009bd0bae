"""What scores depend on: the key that a run's progress belongs to, and the part of it that its workers can see.

In: a `ScoreConfig` and what it names. Out: dictionaries for JSON.
"""

from __future__ import annotations

from typing import Any

from fam_engine.config import HOW_IT_RUNS, ScoreConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.sources import Sources, input_key, model_key


def run_key(config: ScoreConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that scores depend on; progress belongs to exactly this."""
    return {**input_key(sources, encoder, config.device), **_settings_key(config)}


def worker_key(config: ScoreConfig, sources: Sources) -> dict[str, Any]:
    """Give what a worker must have in common with the job: the run's key, but of its texts only names and sizes.

    A worker computes token ids that are in the spool already. Hashing the input once more in every one of a
    hundred processes would take longer than reading it once did.
    """
    return {
        "files": [[file.name, file.path.stat().st_size] for file in sources.files],
        **model_key(sources, config.device),
        **_settings_key(config),
    }


def _settings_key(config: ScoreConfig) -> dict[str, Any]:
    exclude = {"model", "data", "out", "adapter", "max_tokens_per_batch", "download"}
    return config.model_dump(mode="json", exclude=exclude | HOW_IT_RUNS)

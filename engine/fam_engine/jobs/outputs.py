"""The files that each kind of job leaves in its --out, by command: one that has lost any is not finished.

Here and not with the jobs, for `status` asks too, and a job brings torch.
"""

from __future__ import annotations

from typing import Final

from fam_engine.jobs.training.log import NAME as LOG

OUTPUTS: Final = {
    "score": ("scores.parquet", "quarantine.jsonl", "report.html", "summary.json"),
    "generate": ("generated.jsonl", "quarantine.jsonl", "summary.json"),
    "rewrite": ("rewritten.jsonl", "candidates.parquet", "quarantine.jsonl", "summary.json"),
    "train": ("adapter/adapter_model.safetensors", LOG, "quarantine.jsonl", "summary.json"),
    "eval": ("samples.parquet", "summary.json", "report.html", "quarantine.jsonl"),
}

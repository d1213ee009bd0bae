"""A small language model and a thousand real answers, so that everything runs without a download.

What may come in here: the model's folder, the demo's records, and the scripts that made both. Nothing here imports the
rest of the package, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE / "model"
DEMO_RECORDS = HERE / "demo" / "answers.jsonl"

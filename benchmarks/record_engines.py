"""Records to training data, three ways: ours, TRL's, and by hand on transformers.

In: a tokenizer's folder, a file of questions and answers. Out: how many tokens and packs came of it. Subjects of
`fam_engine.jobs.bench.workers`.
"""

from __future__ import annotations

import json
import os
import tempfile
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Tokens of a pack.
CAPACITY = 2048


class Ours:
    """Records through pass 1 of a job into packs."""

    def __init__(self, model: str, data: str, num_records: int) -> None:
        from fam_engine.data.tokenizer import TextEncoder

        self._encoder = TextEncoder(Path(model))
        self._data, self._num_records = data, num_records

    def run(self, passes: int = 1) -> dict[str, int]:
        """Read, encode, spool, pack, so many times over."""
        for _ in range(passes):
            found = self._once()
        return found

    def _once(self) -> dict[str, int]:
        from fam_engine.data.packing import pack_sequences
        from fam_engine.jobs.data_files import DataFile
        from fam_engine.jobs.journal import Journal
        from fam_engine.jobs.scoring.entries import SCHEMA
        from fam_engine.jobs.scoring.ingest import Ingest, IngestPlan

        with tempfile.TemporaryDirectory() as folder:
            with Journal(Path(folder), {}, SCHEMA) as journal:
                plan = IngestPlan(CAPACITY, "quarantine", limit=self._num_records)
                ingest = Ingest(journal, self._encoder, plan, num_threads=1)
                ingest.run([DataFile("data", Path(self._data))], lambda _: None)
            packs = pack_sequences(ingest.folder, capacity=CAPACITY)
        return {"tokens": len(packs.input_ids), "packs": len(packs.pack_starts) - 1}


class Trl:
    """TRL's own preparation."""

    def __init__(self, model: str, data: str, num_records: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import datasets
        import transformers
        from trl import SFTConfig

        datasets.disable_caching()
        datasets.disable_progress_bars()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._data, self._num_records = data, num_records
        self._settings = SFTConfig(
            output_dir=tempfile.gettempdir(),
            packing=True,
            max_length=CAPACITY,
            use_cpu=True,
            bf16=False,
        )

    def run(self) -> dict[str, int]:
        """Read, then what the trainer does before it trains."""
        import datasets
        from trl import SFTTrainer

        rows = [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in _rows(self._data, self._num_records)
        ]
        # All that the method asks of its trainer.
        trainer = SimpleNamespace(
            _tokenizer=self._tokenizer,
            chat_template=self._tokenizer.chat_template,
            completion_only_loss=True,
            args=self._settings,
        )
        packed = SFTTrainer._prepare_dataset(
            trainer,
            datasets.Dataset.from_list(rows),
            self._tokenizer,
            self._settings,
            True,
            None,
            "train",
        )
        return {"tokens": sum(map(len, packed["input_ids"])), "packs": len(packed)}


class Transformers:
    """Everything rendered, then everything encoded, in two calls each."""

    def __init__(self, model: str, data: str, num_records: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import transformers

        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._data, self._num_records = data, num_records

    def run(self) -> dict[str, int]:
        """Read, render, encode."""
        turns = [
            [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
            for row in _rows(self._data, self._num_records)
        ]
        render = self._tokenizer.apply_chat_template
        prompts = render([turn[:1] for turn in turns], tokenize=False, add_generation_prompt=True)
        wholes = render(turns, tokenize=False)
        self._tokenizer(prompts, add_special_tokens=False)
        found = self._tokenizer(wholes, add_special_tokens=False)["input_ids"]
        return {"tokens": sum(map(len, found)), "packs": 0}


def _rows(data: str, num_records: int) -> list[dict[str, Any]]:
    with Path(data).open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, num_records)]

"""The named workloads: what the tool does all day, each as a subject the harness can time.

In: the settings of `bench`. Out: subjects with the amount of work a run does. The records are the package's own real
answers (GSM8K), so figures of two machines mean the same work; the model is the user's. Each goes through the public
way in: what is timed is what a user gets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fam_engine.config import BenchConfig
from fam_engine.embedded import DEMO_RECORDS

# Tokens of a packed sequence, and how many records packing is timed with.
CAPACITY = 2048
NUM_LENGTHS = 1_000_000
_COPIES = 4


@dataclass(frozen=True)
class Workload:
    """A workload by name.

    Attributes:
        about: What it does, for people.
        unit: What is counted.
        make: Settings -> subject; the subject has the `amount` of a run and `details`.
    """

    about: str
    unit: str
    make: Callable[[BenchConfig], Timed]


class Timed(Protocol):
    """A subject that knows its work.

    Attributes:
        amount: Units of work a run does.
        details: What else is worth keeping.
    """

    amount: int
    details: dict[str, Any]

    def run(self) -> None:
        """Do the work once."""


class Tokenize:
    """Texts to ids in numpy, on one thread."""

    def __init__(self, config: BenchConfig) -> None:
        from fam_engine.data.tokenizer_loading import load_tokenizer

        self._tokenizer = load_tokenizer(_model_folder(config))
        records = demo_records()
        texts = [text for record in records for text in (record["prompt"], record["response"])]
        self._texts = texts * _COPIES
        self.amount = sum(len(text.encode()) for text in self._texts)
        self.details: dict[str, Any] = {"engine": self._tokenizer.engine}

    def run(self) -> None:
        """Encode all texts."""
        ids, _ = self._tokenizer.encode_batch(self._texts, num_threads=1)
        self.details["num_tokens"] = len(ids)


class Pack:
    """A million lengths to packs."""

    def __init__(self, config: BenchConfig) -> None:
        from fam_engine._rust_tokenize import pack_lengths

        self._pack = pack_lengths
        # Characters stand in for tokens: three a token is about right, and needs no tokenizer.
        lengths = [len(r["prompt"] + r["response"]) // 3 + 1 for r in demo_records()]
        rng = np.random.default_rng(0)
        self._lengths = rng.choice(np.array(lengths, np.int64), NUM_LENGTHS)
        self.amount = NUM_LENGTHS
        self.details: dict[str, Any] = {"capacity": CAPACITY}

    def run(self) -> None:
        """Pack all lengths."""
        packs = self._pack(self._lengths, CAPACITY)
        num_packs = int(packs.max()) + 1
        self.details["fill"] = float(self._lengths.sum() / (num_packs * CAPACITY))


class Score:
    """Records to scores, as `fam_engine.Scorer` gives them."""

    def __init__(self, config: BenchConfig) -> None:
        from fam_engine.jobs.scoring.scorer import Scorer

        self._scorer = Scorer(
            _model_folder(config),
            precision=config.precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
            max_tokens_per_batch=config.max_tokens_per_batch,
        )
        self._records = demo_records(config.limit)
        table = self._scorer.score(self._records)
        counts = table.select(["num_prompt_tokens", "num_response_tokens"]).to_pydict()
        self.amount = sum(map(sum, counts.values()))
        self.details = {"records": len(self._records)}

    def run(self) -> None:
        """Score all records."""
        self._scorer.score(self._records)


class TrainStep:
    """One optimizer step of LoRA on every linear layer."""

    def __init__(self, config: BenchConfig) -> None:
        from fam_engine.config import TrainConfig
        from fam_engine.jobs.interrupts import Interrupts
        from fam_engine.jobs.progress import Nobody
        from fam_engine.jobs.sources import open_model
        from fam_engine.jobs.training.given import Given
        from fam_engine.jobs.training.job import lora_spec, memory_plan
        from fam_engine.jobs.training.loop import loss_settings
        from fam_engine.jobs.training.optim import AdamW
        from fam_engine.jobs.training.prepare import prepared
        from fam_engine.jobs.training.steps import GradientMaker
        from fam_engine.model.trainable import TrainableModel

        # The spool is read from here until the process ends.
        self._folder = tempfile.TemporaryDirectory(prefix="fam-engine-")
        settings = TrainConfig(
            model=str(_model_folder(config)),
            precision=config.precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
            data=("embedded",),
            limit=config.limit,
            max_tokens_per_batch=config.max_tokens_per_batch,
            out=Path(self._folder.name),
        )
        with (
            Interrupts() as interrupts,
            prepared(settings, settings.out, Nobody(), interrupts) as data,
        ):
            spec = lora_spec(settings)
            self._plan = memory_plan(settings, Given.of(data), spec, None, 1).step
            decoder = open_model(settings, data.sources)
            examples = data.train
        self._model = TrainableModel(decoder, spec, seed=0)
        self._maker = GradientMaker(self._model, examples, loss_settings(settings), seed=0)
        self._optimizer = AdamW("adamw", self._model.parameters, weight_decay=0.0)
        self._entries = examples.entries
        self._steps = itertools.count()
        self.amount = examples.num_tokens(self._entries)
        self.details: dict[str, Any] = {"records": len(self._entries), "rank": settings.rank}

    def run(self) -> None:
        """Do a step with all records."""
        found, self._plan = self._maker.step(next(self._steps), self._entries, self._plan)
        self._optimizer.step(1e-5)
        self.details |= {
            "max_tokens_per_batch": self._plan.max_tokens,
            "room_bytes": self._plan.room,
        }
        self.details["loss"] = found.loss


class Generate:
    """Questions to answers, greedily, as `fam_engine.Generator` gives them."""

    def __init__(self, config: BenchConfig) -> None:
        from fam_engine.jobs.generation.generator import Generator
        from fam_engine.model.generation.requests import Sampling

        self._generator = Generator(
            _model_folder(config),
            precision=config.precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
        )
        asked = {record["prompt"]: {"prompt": record["prompt"]} for record in demo_records()}
        self._questions = list(asked.values())[: config.limit]
        self._sampling = Sampling(max_new_tokens=64)
        self.amount = self._answer()
        self.details = {"records": len(self._questions), "max_new_tokens": 64}

    def run(self) -> None:
        """Answer all questions."""
        self._answer()

    def _answer(self) -> int:
        answers = self._generator.generate(self._questions, self._sampling)
        return sum(answer["provenance"]["num_tokens"] for answer in answers)


WORKLOADS = {
    "tokenize": Workload("texts to token ids, one thread", "bytes", Tokenize),
    "pack": Workload("a million lengths to packs", "records", Pack),
    "score": Workload("records to scores", "tokens", Score),
    "train-step": Workload("one LoRA step, forward to optimizer", "tokens", TrainStep),
    "generate": Workload("greedy answers of at most 64 tokens", "tokens", Generate),
}


class Measured:
    """A workload as the harness runs it: every run answers with the work done and the details."""

    def __init__(self, name: str, config: BenchConfig) -> None:
        self._timed = WORKLOADS[name].make(config)

    def run(self) -> tuple[int, dict[str, Any]]:
        """Do the work once, to its very end."""
        self._timed.run()
        _finish_on_device()
        return self._timed.amount, self._timed.details


def demo_records(limit: int | None = None) -> list[dict[str, Any]]:
    """Give the package's own records."""
    with DEMO_RECORDS.open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, limit)]


def _model_folder(config: BenchConfig) -> Path:
    from fam_engine.model.folders import resolve_model

    folder, _ = resolve_model(config.model, download=config.download)
    return folder


def _finish_on_device() -> None:
    """Wait for a GPU: its work is only queued when a call comes back."""
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()

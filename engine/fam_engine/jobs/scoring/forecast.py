"""The dry run: what scoring would take, without loading the model.

In: a `ScoreConfig`. Out: a `ScoreForecast`. Counts are exact, they come from the real pass 1 and the real plan;
memory is computed from the model's shape, for this device and for GPUs of usual sizes; time from the speed of one of
its matrix products on this machine.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fam_engine._rust_tokenize import plan_batches
from fam_engine.config import ScoreConfig
from fam_engine.data.packing import ROW_GRID
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.jobs.scoring.prepare import prepared
from fam_engine.jobs.scoring.sharing.local import count_workers
from fam_engine.jobs.scoring.sharing.parts import divide
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.measure.lengths import typical_lengths
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import card_compute_dtype, choose_compute_dtype, choose_device
from fam_engine.model.memory import (
    CARDS,
    DevicePlan,
    batch_bytes,
    free_bytes,
    plan_cards,
    plan_device,
    weight_bytes,
)


@dataclass(frozen=True)
class ScoreForecast:
    """What a job would do, from a dry run.

    Attributes:
        num_records: Records that would be scored.
        quarantined: Records that would be left out, by code.
        tokens: Prompt and response tokens; those computed with and without shared prompts.
        lengths: Mean, median, 95th percentile and maximum of prompt and response tokens.
        longest: The longest records: (id, tokens).
        max_tokens_per_batch: Token budget of a batch.
        memory_bytes: Weights and one batch, estimated.
        device: How the memory that is free now would be used, the fields of a `DevicePlan`.
        cards: How that of GPUs would be, by their size in GiB.
        least_bytes_with_nf4: What weights quantized to NF4 and the longest record would take on a GPU.
        seconds: Time, from a probe of this machine's matrix products, for each of the workers.
        num_parts: Parts that many workers would share.
        num_workers: How many workers were asked for.
    """

    num_records: int
    quarantined: dict[str, int]
    tokens: dict[str, int]
    lengths: dict[str, dict[str, float]]
    longest: list[tuple[str, int]]
    max_tokens_per_batch: int
    memory_bytes: int
    device: dict[str, int]
    cards: dict[int, dict[str, int]]
    least_bytes_with_nf4: int
    seconds: float
    num_parts: int
    num_workers: int


def forecast_score(config: ScoreConfig, progress: Progress) -> ScoreForecast:
    """Read the records, plan the batches, and say what scoring them would take.

    Raises:
        FamEngineError: As `run_score` would, for data, template and tokenizer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        prepared(config, Path(folder), progress, interrupts) as (journal, spool, _, sources),
    ):
        model = ModelConfig.from_folder(sources.model)
        device = choose_device(config.device)
        dtype = choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        )
        index = spool.index()
        longest = int((index["context_len"] + index["target_len"]).max())
        memory = plan_device(
            model,
            precision=config.precision,
            compute_dtype=dtype,
            device_type=device.type,
            free=free_bytes(device),
            longest=longest,
        )
        budget = config.max_tokens_per_batch or memory.max_tokens_per_batch or ROW_GRID
        plan = plan_batches(spool, np.arange(len(spool), dtype=np.int64), max_tokens=budget)
        num_workers = _count_workers(config)
        seconds = predict_seconds(
            model, plan.total_tokens, int(index["target_len"].sum()), dtype, device
        )
        _, offsets = divide(spool, np.arange(len(spool)))
        own = _entries(journal)
        lengths = {"prompt": index["context_len"][own], "response": index["target_len"][own]}
        return ScoreForecast(
            num_records=journal.get("ingested")["records"],
            quarantined=quarantined_by_code(journal.db),
            tokens={
                **{name: int(counts.sum()) for name, counts in lengths.items()},
                "computed": plan.total_tokens,
                "without_sharing": plan.tokens_without_sharing,
            },
            lengths={name: typical_lengths(counts) for name, counts in lengths.items()},
            longest=_longest(journal),
            max_tokens_per_batch=budget,
            memory_bytes=memory.weight_bytes + batch_bytes(model, budget, dtype, device.type),
            device=asdict(memory),
            cards={
                size: asdict(plan) for size, plan in _plan_cards(config, model, longest).items()
            },
            least_bytes_with_nf4=_least_with_nf4(model, longest),
            seconds=seconds / num_workers,
            num_parts=len(offsets) - 1,
            num_workers=num_workers,
        )


def _plan_cards(config: ScoreConfig, model: ModelConfig, longest: int) -> dict[int, DevicePlan]:
    """Plan GPUs that need not be here."""
    dtype = card_compute_dtype(config.compute_dtype, precision=config.precision)
    return plan_cards(model, precision=config.precision, compute_dtype=dtype, longest=longest)


def _least_with_nf4(model: ModelConfig, longest: int) -> int:
    cards = plan_cards(model, precision="nf4", compute_dtype=torch.bfloat16, longest=longest)
    return cards[CARDS[0]].least_bytes


def _count_workers(config: ScoreConfig) -> int:
    """Give how many workers a job would have; how many a cluster has room for only it knows."""
    if config.shard:
        return int(config.shard.partition("/")[2])
    return count_workers(config) if config.launcher == "local" else config.workers or 1


def _entries(journal: Journal) -> npt.NDArray[np.int64]:
    """Give the records' own entries: `ifd` and `in_context` have more, the same responses after other prompts."""
    rows = journal.db.execute("SELECT entry FROM records ORDER BY position")
    return np.fromiter((entry for (entry,) in rows), np.int64)


def _longest(journal: Journal) -> list[tuple[str, int]]:
    return journal.db.execute(
        "SELECT id, num_prompt_tokens + num_response_tokens AS n FROM records "
        "ORDER BY n DESC, position LIMIT 5"
    ).fetchall()


def predict_seconds(
    model: ModelConfig, num_tokens: int, num_rows: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Predict the time of a forward pass from the speed of one of the model's products, timed here.

    Args:
        model: Its shape.
        num_tokens: Tokens through the layers.
        num_rows: Rows through the head.
        dtype: Compute dtype.
        device: Where.
    """
    rows, inner, outer = 512, model.hidden_size, 2 * model.intermediate_size
    x = torch.randn(rows, inner, device=device).to(dtype)
    w = torch.randn(outer, inner, device=device).to(dtype)
    float(torch.mm(x, w.T).sum())
    watch = Stopwatch()
    rounds = 0
    while rounds < 3 or watch.seconds() < 0.5:
        float(torch.mm(x, w.T).sum())
        rounds += 1
    flops_a_second = 2.0 * rows * inner * outer * rounds / watch.seconds()
    body = weight_bytes(model, "fp32", dtype) / 4 - model.vocab_size * model.hidden_size
    head = model.vocab_size * model.hidden_size
    # Attention, norms and the element-wise work on the logits come on top of the products.
    overhead = 1.4
    return overhead * 2.0 * (num_tokens * body + num_rows * head) / flops_a_second

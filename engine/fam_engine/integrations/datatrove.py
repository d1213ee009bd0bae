"""datatrove: keep documents whose perplexity lies within a band.

In: documents of a pipeline; `metadata["prompt"]`, text, is what a document answers, where it has one. Out: the
documents within the band, with the scores in their metadata. A document that cannot be scored (empty, longer than the
model) is dropped with the code of its error as the reason, so that a pipeline's statistics and exclusion writer show
how many and which; cutting it instead would give it the perplexity of its beginning.

The step pickles without its model, which each task loads when its first batch comes. Contract read from datatrove
0.10.1, `pipeline/filters/base_filter.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer

try:
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.writers.disk_base import DiskWriter
except ModuleNotFoundError as error:
    hint = "pip install 'fam-engine[datatrove]'"
    raise ModuleNotFoundError(f"`{error.name}` is missing ({hint})", name=error.name) from None

_KEPT = ("nll_mean", "perplexity", "bits_per_byte", "num_response_tokens")

Verdict = bool | tuple[bool, str]


class PerplexityFilter(BaseFilter):  # type: ignore[misc]  # datatrove is an extra
    """Keeps documents with `low <= perplexity <= high`.

    Args:
        model: Model folder, or `embedded`.
        low: Least perplexity.
        high: Greatest perplexity.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `none`, `auto` or a template file: how a prompt is put before its document.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.
        exclusion_writer: Takes what is dropped.
        batch_size: Documents scored at a time.

    Raises:
        ModelRefusedError: The model or the adapter is not there.
        UsageError: A band that holds nothing.
    """

    name = "Perplexity"

    def __init__(
        self,
        model: str | Path,
        *,
        low: float = 1.0,
        high: float = float("inf"),
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "none",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
        exclusion_writer: DiskWriter | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        if not low <= high:
            message = f"the band is {low} to {high}, expected low <= high"
            raise UsageError(message, code="E_DATATROVE_BAND")
        self.low = low
        self.high = high
        self._scorer = LazyScorer(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
            template=template,
            chat_template_kwargs=chat_template_kwargs,
            max_tokens_per_batch=max_tokens_per_batch,
        )

    def filter(self, doc: Document) -> Verdict:
        """Judge one document."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: Sequence[Document]) -> list[Verdict]:
        """Judge documents and note their scores in their metadata."""
        table = self._scorer.score_each([_record(doc) for doc in batch])
        rows = table.select([*_KEPT, "error"]).to_pylist()
        return [self._judge(doc, row) for doc, row in zip(batch, rows, strict=True)]

    def _judge(self, doc: Document, row: dict[str, Any]) -> Verdict:
        if row["error"] is not None:
            return False, row["error"].partition(":")[0]
        doc.metadata |= {name: row[name] for name in _KEPT}
        perplexity = row["perplexity"]
        if perplexity is None or perplexity > self.high:  # None: beyond what a float holds
            return False, "perplexity_above"
        return True if perplexity >= self.low else (False, "perplexity_below")


def _record(doc: Document) -> dict[str, Any]:
    return {"prompt": doc.metadata.get("prompt") or "", "response": doc.text}

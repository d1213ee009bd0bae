"""NeMo Curator: a stage that notes how familiar documents are; Curator's own `Filter` keeps those within a band.

In: batches of documents, the text in one column, what it answers in another where there is one. Out: the same rows in
the same order with columns of scores, and `error` (code and reason) where a document could not be scored. Why not a
`DocumentFilter` for Curator's `ScoreFilter`: that is called row by row on one column, a forward pass for each, and has
no place for a prompt.

The stage pickles without its model, which each worker loads when its first batch comes. Contract read from nemo-curator
1.4.0, `stages/base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer

try:
    import pandas as pd
    from nemo_curator.stages.base import ProcessingStage
    from nemo_curator.stages.resources import Resources
    from nemo_curator.tasks import DocumentBatch
except ModuleNotFoundError as error:
    hint = "pip install nemo-curator"
    raise ModuleNotFoundError(f"`{error.name}` is missing ({hint})", name=error.name) from None

_NOTED = ("nll_mean", "perplexity", "bits_per_byte", "num_response_tokens", "error")
# Beside float64, which numbers are anyway. The same for every batch, whatever is null in it: else the Parquet files of
# several batches could not be read as one.
_DTYPES = {pa.int32(): pd.Int64Dtype(), pa.string(): pd.StringDtype()}


class PerplexityStage(ProcessingStage[DocumentBatch, DocumentBatch]):  # type: ignore[misc]  # untyped
    """Adds `nll_mean`, `perplexity`, `bits_per_byte`, `num_response_tokens` and `error` to documents.

    Args:
        model: Model folder, or `embedded`.
        text: Column of the documents.
        prompt: Column of what they answer; None: there is none.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`; with `cuda` a worker asks Curator for a GPU.
        template: `none`, `auto` or a template file: how a prompt is put before its document.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model or the adapter is not there.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        text: str = "text",
        prompt: str | None = None,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "none",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        self.name = "fam_engine_perplexity"
        self.resources = Resources(cpus=1.0, gpus=1.0 if device == "cuda" else 0.0)
        self._columns = {"response": text} | ({"prompt": prompt} if prompt else {})
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

    def inputs(self) -> tuple[list[str], list[str]]:
        """Name what documents must have."""
        return ["data"], list(self._columns.values())

    def outputs(self) -> tuple[list[str], list[str]]:
        """Name what they have afterwards."""
        return ["data"], [*self._columns.values(), *_NOTED]

    def process(self, task: DocumentBatch) -> DocumentBatch:
        """Score a batch; columns of the scores' names are replaced."""
        documents = task.to_pandas()
        texts = {field: _values(documents[column]) for field, column in self._columns.items()}
        prompts = texts.get("prompt", [""] * len(documents))
        records = [
            {"prompt": prompt, "response": response}
            for prompt, response in zip(prompts, texts["response"], strict=True)
        ]
        table = self._scorer.score_each(records).select(_NOTED)
        scores = table.to_pandas(types_mapper=_DTYPES.get)
        return DocumentBatch(
            dataset_name=task.dataset_name,
            # Arrays, for a series would be put in the order of the documents' index.
            data=documents.assign(**{name: scores[name].array for name in _NOTED}),
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )


def _values(column: pd.Series[Any]) -> list[Any]:
    """Give a column's values, whatever its dtype; of Arrow's lists, which pandas holds as arrays, lists."""
    held = column.astype(object)
    values = held.where(held.notna(), "")
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]

"""Hugging Face datasets: scores as columns of a dataset, by `Dataset.map`.

In: a batch as `map(..., batched=True)` gives it, of any form a data file may have and any format a dataset may be set
to (`with_format`: lists, arrays, a table). Out: the numbers of `scores.parquet` as columns beside those that are there,
and `error` where a row could not be scored. Labels (`id`, `group`, ...) are the dataset's own and stay as they are.

The form is found from the names of the columns, not from the values of a row: what a row means must not depend on the
batch it falls into. Types are not left to `datasets` to infer, which takes a column that is empty in the first batch
for one that is always empty and stops at the first value; `features` gives them. Contract read from datasets 5.2,
`arrow_dataset.py` (`map`), `fingerprint.py` (the hash of what the callable pickles to).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.records import detect_form, map_columns
from fam_engine.errors import InputError, RecordError, UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer
from fam_engine.jobs.scoring.scorer import EACH_COLUMNS

if TYPE_CHECKING:
    from datasets import Features

_LABELS = ("id", "file", "line", "source", "group", "correct")
_SCORES = pa.schema([field for field in EACH_COLUMNS if field.name not in _LABELS])


class FamiliarityMapper:
    r"""What `Dataset.map` calls to add scores; loads its model in the worker that first calls it.

    Args:
        model: Model folder, or `embedded`.
        columns: Record field -> column, as --map does it.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model or the adapter is not there.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"prompt": ["What is 2 + 3?\n"], "response": ["5"]})
        >>> mapper = FamiliarityMapper("embedded")
        >>> scored = rows.map(mapper, batched=True, features=mapper.features(rows.features))
        >>> scored["num_response_tokens"][0]
        1
    """

    def __init__(
        self,
        model: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        self._columns = dict(columns or {})
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

    def features(self, features: Features) -> Features:
        """Give the features of a dataset with these features once it is scored."""
        from datasets import Features

        return Features({**features, **Features.from_arrow_schema(_SCORES)})

    def __call__(self, batch: Any) -> dict[str, list[Any]]:  # noqa: ANN401 - of many libraries
        """Score a batch.

        Args:
            batch: Column name -> values, or a table of Arrow, pandas or polars.

        Returns:
            Score name -> values; null, and `error` says why, where a row could not be scored.

        Raises:
            InputError: The columns are of no known form, or one that was named is not there.
            UsageError: A single row came instead of a batch, or a column is no list of values.
        """
        rows = self._rows(batch)
        table = self._scorer.score_each(rows)
        return {name: table[name].to_pylist() for name in _SCORES.names}

    def _rows(self, given: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of many libraries
        """Give the texts of a batch and nothing else: other columns may hold what JSON cannot."""
        # A batch that is a mapping decodes a column when it is asked for: not images for their texts.
        batch = given if isinstance(given, Mapping) else _columns(given)
        for field, column in self._columns.items():
            if column not in batch:
                found = ", ".join(f"`{name}`" for name in batch)
                raise InputError(
                    f"there is no column `{column}`, which `columns` names for `{field}`; found {found}",
                    code="E_RECORD_FORM",
                )
        mapped = map_columns(batch, self._columns)
        try:
            form = detect_form(mapped)
        except RecordError as error:
            raise InputError(error.reason, code=error.code) from None
        names = (*form.columns, *form.beside)
        texts = {name: _plain(mapped[name]) for name in names if mapped.get(name) is not None}
        for name in form.columns:
            _check_values(name, texts[name])
        return [
            dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)
        ]


def _columns(table: Any) -> dict[str, Any]:  # noqa: ANN401 - of many libraries
    """Give the columns of a table: `columns` of Arrow's are those themselves, of the others their names."""
    for attribute in ("column_names", "columns"):
        if hasattr(table, attribute):
            return {name: table[name] for name in getattr(table, attribute)}
    raise UsageError(
        f"a {type(table).__name__} came, expected a batch of named columns",
        code="E_DATASETS_BATCH",
        hint="map(mapper, batched=True), of a dataset with_format(None)",
    )


def _plain(values: Any) -> Any:  # noqa: ANN401 - any column
    """Give a column as lists, whatever library has it; rows that are lists or objects may hold arrays again."""
    for method in ("to_pylist", "tolist", "to_list"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return values


def _check_values(name: str, values: object) -> None:
    """Refuse what is one row's: a text, or one conversation, which is a list too, of turns."""
    turn = values[0] if isinstance(values, list) and values else None
    is_turn = isinstance(turn, Mapping) and isinstance(turn.get("role", turn.get("from")), str)
    if isinstance(values, str) or is_turn:
        raise UsageError(
            "a single row came, expected a batch of them",
            code="E_DATASETS_BATCH",
            hint="map(mapper, batched=True)",
        )
    if not isinstance(values, list):
        raise UsageError(
            f"column `{name}` is of type {type(values).__name__}, expected a list of its rows' values",
            code="E_DATASETS_BATCH",
            hint="map(mapper, batched=True), of a dataset with_format(None)",
        )

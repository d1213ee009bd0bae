"""The columns of every table that is written, from the schemas that write them.

In: pyarrow schemas. Out: a Markdown table a file. What the columns of scores mean is said on the page of scoring.
"""

from __future__ import annotations

import pyarrow as pa

from fam_engine.jobs.evaluation.files import SAMPLES_SCHEMA
from fam_engine.jobs.rewriting.files import CANDIDATES_SCHEMA
from fam_engine.jobs.scoring.files import TOKENS_SCHEMA, scores_schema
from fam_engine.jobs.selection.files import DROPPED_SCHEMA
from fam_engine.jobs.tokenizing.files import SCHEMA as IDS_SCHEMA

TABLES = {
    "`scores.parquet` of `score`": scores_schema(ifd=True, in_context=True),
    "`tokens.parquet` of `score --tokens`": TOKENS_SCHEMA,
    "`dropped.parquet` of `select`": DROPPED_SCHEMA,
    "`candidates.parquet` of `rewrite`": CANDIDATES_SCHEMA,
    "`samples.parquet` of `eval`": SAMPLES_SCHEMA,
    "`ids.parquet` of `tokenize --ids parquet`": IDS_SCHEMA,
}


def columns() -> str:
    """Give a section a table."""
    return "\n".join(f"### {name}\n\n{_table(schema)}" for name, schema in TABLES.items())


def _table(schema: pa.Schema) -> str:
    rows = [f"| `{field.name}` | {_kind(field.type)} |" for field in schema]
    return "\n".join(["| column | type |", "|---|---|", *rows]) + "\n"


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    return {"double": "float64", "bool": "boolean"}.get(str(kind), str(kind))

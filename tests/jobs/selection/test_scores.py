from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.errors import InputError
from fam_engine.jobs.selection.scores import read_scores
from fam_engine.measure.familiarity import METRICS
from tests.jobs.selection.conftest import Scored

ROWS = [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}]


def replaced(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda table: table.slice(0, 0), "holds no scores"),
        (lambda table: table.drop_columns(["flags"]), "has no column `flags`"),
        (lambda table: table.drop_columns(["nll_mean"]), "has no column `nll_mean`"),
        (replaced("flags", pa.nulls(2)), "has rows without `flags`"),
        (replaced("file", pa.array(["f", None])), "has rows without `file`"),
        (replaced("line", pa.array([0.5, 1.0])), "does not read as a scores table"),
        (replaced("nll_mean", pa.array(["a", "b"])), "does not read as a scores table"),
        (lambda table: table.append_column("id", table["id"]), "does not read as a scores table"),
    ],
)
def test_a_table_that_score_did_not_write_is_refused(
    scored: Scored, spoil: Callable[[pa.Table], pa.Table], reason: str
) -> None:
    _, path = scored(ROWS)
    metric = METRICS["nll_mean"]
    assert len(read_scores(path, metric).table) == 2
    pq.write_table(spoil(pq.read_table(path)), path)
    with pytest.raises(InputError, match=reason) as caught:
        read_scores(path, metric)
    assert caught.value.where == str(path)

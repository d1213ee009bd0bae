"""NeMo Curator's stage, where its package is installed: it brings gigabytes, so `make test` has none."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pandas as pd

pytest.importorskip("nemo_curator", reason="needs nemo-curator, which brings gigabytes")


def documents() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "text": ["2 + 3 = 5", "", "four apples and five pears"],
            "asked": ["What is 2 + 3?\n", "What?\n", None],
            "kept": [7, 8, 9],
        }
    )


def test_documents_get_the_scores_of_a_scorer_and_an_error_where_there_are_none() -> None:
    from nemo_curator.stages.text.filters import Filter
    from nemo_curator.tasks import DocumentBatch

    from fam_engine import Scorer
    from fam_engine.integrations.nemo_curator import PerplexityStage

    stage = PerplexityStage("embedded", prompt="asked", precision="fp32", device="cpu")
    stage = pickle.loads(pickle.dumps(stage))  # as it reaches a worker
    batch = DocumentBatch(dataset_name="d", data=documents())
    assert stage.validate_input(batch)
    found = stage.process(batch).to_pandas()
    scorer = Scorer("embedded", precision="fp32", device="cpu", template="none")
    records = [
        {"prompt": "What is 2 + 3?\n", "response": "2 + 3 = 5"},
        {"prompt": "", "response": "four apples and five pears"},
    ]
    expected = scorer.score_each(records)["perplexity"].to_pylist()
    assert found["perplexity"].tolist()[::2] == expected
    assert found["kept"].tolist() == [7, 8, 9]
    assert found["error"][1].startswith("E_")
    assert found["error"].isna().tolist() == [True, False, True]
    kept = Filter(lambda p: p <= max(expected), "perplexity").process(stage.process(batch))
    assert kept.to_pandas()["kept"].tolist() == [7, 9]


def test_a_worker_asks_for_a_gpu_only_where_one_is_named() -> None:
    from fam_engine.integrations.nemo_curator import PerplexityStage

    stage = PerplexityStage("embedded", device="cpu")
    assert stage.resources.gpus == 0
    assert stage.inputs() == (["data"], ["text"])
    assert PerplexityStage("embedded", device="cuda").resources.gpus == 1

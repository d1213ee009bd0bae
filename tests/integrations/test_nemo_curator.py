"""NeMo Curator's stage. Its package brings gigabytes, so `make test` has none: what takes the package's own code skips
there, and what is about our values and types runs with three stand-ins for the classes that the stage names.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

if TYPE_CHECKING:
    import pandas as pd

IS_INSTALLED = importlib.util.find_spec("nemo_curator") is not None
needs_curator = pytest.mark.skipif(
    not IS_INSTALLED, reason="needs nemo-curator, which brings gigabytes"
)
In, Out = TypeVar("In"), TypeVar("Out")


class Stage(Generic[In, Out]):
    """Stands in for `ProcessingStage`."""


class Batch(SimpleNamespace):
    """Stands in for `DocumentBatch`."""

    def to_pandas(self) -> pd.DataFrame:
        import pyarrow as pa

        return self.data.to_pandas() if isinstance(self.data, pa.Table) else self.data


@pytest.fixture
def stage_of(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Any:  # noqa: ANN401
    """Give a function that makes stages of the tiny model."""
    pytest.importorskip("pandas")
    name = "fam_engine.integrations.nemo_curator"
    if not IS_INSTALLED:
        stand_ins: dict[str, dict[str, object]] = {
            "nemo_curator": {},
            "nemo_curator.stages": {},
            "nemo_curator.stages.base": {"ProcessingStage": Stage},
            "nemo_curator.stages.resources": {"Resources": SimpleNamespace},
            "nemo_curator.tasks": {"DocumentBatch": Batch},
        }
        for module, names in stand_ins.items():
            monkeypatch.setitem(sys.modules, module, ModuleType(module))
            vars(sys.modules[module]).update(names)
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    yield lambda **rest: module.PerplexityStage(tiny_model, precision="fp32", device="cpu", **rest)
    if not IS_INSTALLED:
        sys.modules.pop(name)


def processed(stage: Any, data: Any) -> pd.DataFrame:  # noqa: ANN401
    batch = Batch(dataset_name="d", data=data, _metadata={}, _stage_perf=[])
    found: pd.DataFrame = stage.process(batch).to_pandas()
    return found


def documents() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "text": ["2 + 3 = 5", "", "four apples and five pears"],
            "asked": ["What is 2 + 3?\n", "What?\n", None],
            "kept": [7, 8, 9],
        }
    )


@needs_curator
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


@needs_curator
def test_a_worker_asks_for_a_gpu_only_where_one_is_named() -> None:
    from fam_engine.integrations.nemo_curator import PerplexityStage

    stage = PerplexityStage("embedded", device="cpu")
    assert stage.resources.gpus == 0
    assert stage.inputs() == (["data"], ["text"])
    assert PerplexityStage("embedded", device="cuda").resources.gpus == 1


def test_every_batch_has_the_same_types(stage_of: Any) -> None:  # noqa: ANN401
    import pandas as pd

    stage = stage_of()
    batches = {"good": ["two", "three"], "mixed": ["two", ""], "bad": ["", ""], "empty": []}
    for texts in batches.values():
        # An index that is not 0, 1, ... must not move the scores.
        index = range(7, 7 + len(texts))
        found = processed(stage, pd.DataFrame({"text": pd.Series(texts, index, dtype="str")}))
        scores = found.drop(columns="text")
        assert {name: str(dtype) for name, dtype in scores.dtypes.items()} == {
            **dict.fromkeys(("nll_mean", "perplexity", "bits_per_byte"), "float64"),
            "num_response_tokens": "Int64",
            "error": "string",
        }
        assert found["error"].isna().tolist() == [bool(text) for text in texts]


def test_columns_of_any_kind_are_read(stage_of: Any) -> None:  # noqa: ANN401
    import pandas as pd
    import pyarrow as pa

    chat = [{"role": "user", "content": "one"}]
    texts = pa.array(["two", None]).dictionary_encode()  # pandas makes a categorical of it
    found = processed(stage_of(prompt="asked"), pa.table({"text": texts, "asked": [chat, None]}))
    [prompt] = pd.DataFrame({"text": ["two"], "asked": [chat]}).to_dict("records")
    plain = processed(stage_of(prompt="asked"), pd.DataFrame([prompt]))
    assert found["perplexity"][0] == plain["perplexity"][0]
    assert found["error"][1].startswith("E_EMPTY_RESPONSE")
    numbers = pd.DataFrame({"text": ["two"] * 2, "asked": pd.Series([1, None], dtype="Int64")})
    assert processed(stage_of(prompt="asked"), numbers)["error"].isna().tolist() == [False, True]

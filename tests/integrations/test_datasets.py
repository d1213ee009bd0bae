"""`Dataset.map` with our mapper, by the real package."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("datasets", reason="needs the package `datasets`")
pytestmark = pytest.mark.filterwarnings("default")  # datasets is not free of warnings

from datasets import Dataset  # noqa: E402
from datasets.fingerprint import Hasher  # noqa: E402

from fam_engine.errors import InputError, UsageError  # noqa: E402
from fam_engine.integrations.datasets import FamiliarityMapper  # noqa: E402
from fam_engine.jobs.scoring.scorer import Scorer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("nll_sum", "perplexity", "bits_per_byte", "num_response_tokens", "flags")


@pytest.fixture(scope="module")
def mapper(tiny_model: Path) -> FamiliarityMapper:
    return FamiliarityMapper(tiny_model, precision="fp32", device="cpu")


@pytest.fixture
def rows() -> Dataset:
    """Rows whose first batch has an error in every row, with columns that are no texts."""
    responses = ["", "", "two", "a <s>", "x" * 300, "six"]
    texts = {"prompt": ["one\n"] * 6, "response": responses}
    return Dataset.from_dict({"id": range(6), "when": [datetime.date(2026, 1, 1)] * 6, **texts})


def scored(rows: Dataset, mapper: FamiliarityMapper, batch_size: int) -> Dataset:
    features = mapper.features(rows.features)
    return rows.map(mapper, batched=True, batch_size=batch_size, features=features)


def test_columns_are_those_of_the_scorer_whatever_the_batch(
    rows: Dataset, mapper: FamiliarityMapper, tiny_model: Path
) -> None:
    with Scorer(tiny_model, precision="fp32", device="cpu") as scorer:
        texts = [{"prompt": r["prompt"], "response": r["response"]} for r in rows]
        expected = scorer.score([texts[index] for index in (2, 3, 5)]).to_pylist()
    for batch_size in (2, 6):
        found = scored(rows, mapper, batch_size)
        assert [row["id"] for row in found] == list(range(6))
        codes = [row["error"] and row["error"].split(":")[0] for row in found]
        empty = "E_EMPTY_RESPONSE"
        assert codes == [empty, empty, None, None, "E_TOO_LONG", None]
        for row, score in zip([found[index] for index in (2, 3, 5)], expected, strict=True):
            assert {name: row[name] for name in NAMES} == {name: score[name] for name in NAMES}
        assert found[3]["flags"] == ["special_in_text"]


def test_other_names_of_columns(mapper: FamiliarityMapper, tiny_model: Path, rows: Dataset) -> None:
    renamed = rows.rename_columns({"response": "text"})
    columns = {"response": "text"}
    other = FamiliarityMapper(tiny_model, columns=columns, precision="fp32", device="cpu")
    assert scored(renamed, other, 3)["nll_sum"][:] == scored(rows, mapper, 3)["nll_sum"][:]
    with pytest.raises(InputError, match="`text`, expected one of"):
        mapper(renamed[:2])
    with pytest.raises(InputError, match="no column `text`, which `columns` names for `response`"):
        other(rows[:2])


def test_instructions_keep_their_input(mapper: FamiliarityMapper) -> None:
    batch: Mapping[str, list[str]] = {"instruction": ["add"] * 2, "output": ["x"] * 2}
    with_input = mapper({**batch, "input": ["1 and 2", ""]})
    assert with_input["nll_sum"][1] == mapper(batch)["nll_sum"][1]
    assert with_input["nll_sum"][0] != with_input["nll_sum"][1]


def test_what_a_model_is_told_beside_is_handed_on(mapper: FamiliarityMapper) -> None:
    batch = {"prompt": ["add"] * 2, "response": ["x"] * 2, "system": ["", "be brief"]}
    alone, told = mapper(batch)["nll_sum"]
    assert alone != told
    tools = mapper({**batch, "tools": [None, "nothing"]})["error"]
    assert [error is None for error in tools] == [True, False]


def test_a_row_that_json_cannot_hold_stops_no_other(mapper: FamiliarityMapper) -> None:
    found = mapper({"prompt": [b"one", "one"], "response": ["two", "two"]})
    assert found["error"][0].startswith("E_RECORDS: field `prompt` holds what JSON cannot")
    assert (found["nll_mean"][0], found["error"][1]) == (None, None)


TURNS = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
SHAREGPT = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
CHATS = [
    {"messages": TURNS},
    {"conversations": SHAREGPT},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"messages": TURNS[:1], "response": "two"},
    {"prompt": "one", "response": "two"},
]


@pytest.mark.parametrize("row", CHATS, ids=lambda row: "-".join(row))
def test_a_single_row_is_refused(mapper: FamiliarityMapper, row: dict[str, Any]) -> None:
    """One conversation is a list too, of turns."""
    rows = Dataset.from_dict({name: [value] * 2 for name, value in row.items()})
    with pytest.raises(UsageError, match=r"E_DATASETS_BATCH.*a single row came.*batched=True"):
        rows.map(mapper)
    assert scored(rows, mapper, 2)["error"][:] == [None, None]


def test_a_conversation_of_another_shape_is_an_error_of_its_row(mapper: FamiliarityMapper) -> None:
    """An object of lists, as older releases of datasets have turns, is no turn."""
    shape = {"role": ["user", "assistant"], "content": ["one", "two"]}
    (error,) = mapper({"messages": [shape]})["error"]
    assert error.startswith("E_RECORD_TYPE")


@pytest.mark.parametrize("name", ["numpy", "pandas", "arrow", "polars", "torch"])
@pytest.mark.parametrize("row", CHATS, ids=lambda row: "-".join(row))
def test_a_dataset_may_be_of_any_format(
    mapper: FamiliarityMapper, row: dict[str, Any], name: str
) -> None:
    pytest.importorskip(name if name != "arrow" else "pyarrow")
    rows = Dataset.from_dict({column: [value] * 2 for column, value in row.items()})
    expected = scored(rows, mapper, 2)["nll_sum"][:]
    found = scored(rows.with_format(name), mapper, 2).with_format(None)["nll_sum"][:]
    assert found == expected
    assert None not in expected


def test_columns_that_are_not_read_are_not_decoded(mapper: FamiliarityMapper) -> None:
    asked: list[str] = []

    class Batch(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:  # noqa: ANN401
            asked.append(name)
            return super().__getitem__(name)

    assert mapper(Batch(image=[b""], prompt=["one"], response=["two"]))["error"] == [None]
    assert set(asked) == {"prompt", "response"}


def test_texts_alone_need_empty_prompts(tiny_model: Path) -> None:
    columns = {"response": "text"}
    texts = FamiliarityMapper(tiny_model, columns=columns, precision="fp32", device="cpu")
    rows = Dataset.from_dict({"prompt": ["", ""], "text": ["one", "two"]})
    assert scored(rows, texts, 2)["num_response_tokens"][:] == [3, 3]
    with pytest.raises(InputError, match="E_RECORD_FORM"):
        texts({"text": ["one"]})


def test_what_is_no_batch_is_told_by_its_type(mapper: FamiliarityMapper) -> None:
    with pytest.raises(UsageError, match=r"column `prompt` is of type int, .*with_format\(None\)"):
        mapper({"prompt": 5, "response": ["a"]})
    with pytest.raises(UsageError, match="a list came, expected a batch of named columns"):
        mapper([{"prompt": "a", "response": "b"}])


def test_two_processes_and_equal_fingerprints_in_all(
    rows: Dataset, mapper: FamiliarityMapper, tiny_model: Path, tmp_path: Path
) -> None:
    rows.save_to_disk(tmp_path / "rows")
    code = f"""
from datasets import load_from_disk
from datasets.fingerprint import Hasher
from fam_engine.integrations.datasets import FamiliarityMapper
rows = load_from_disk({str(tmp_path / "rows")!r})
mapper = FamiliarityMapper({str(tiny_model)!r}, precision="fp32", device="cpu")
features = mapper.features(rows.features)
found = rows.map(mapper, batched=True, batch_size=2, features=features, num_proc=2)
found.save_to_disk({str(tmp_path / "scored")!r})
print("hash", Hasher.hash(mapper))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, check=True, timeout=200, capture_output=True, text=True)
    expected = scored(rows, mapper, 6)
    found = Dataset.load_from_disk(tmp_path / "scored")
    assert found["nll_sum"][:] == expected["nll_sum"][:]
    # After use here, unused there: the hash knows settings and bytes, not what is loaded.
    assert f"hash {Hasher.hash(mapper)}" in run.stdout
    other = FamiliarityMapper(tiny_model, precision="bf16", device="cpu")
    assert Hasher.hash(other) != Hasher.hash(mapper)

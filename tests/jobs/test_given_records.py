from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fam_engine
from fam_engine.errors import InputError, ModelRefusedError
from fam_engine.jobs.given_records import record_lines


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (["a"], "record 1: is of type str, expected a dict"),
        ([{"prompt": "p"}, None], "record 2: is of type NoneType, expected a dict"),
        ({"prompt": "p", "response": "r"}, "a value of type dict was given, expected a list of"),
        ("text", "a value of type str was given, expected a list of dicts"),
        (None, "a value of type NoneType was given, expected a list of dicts"),
        (
            pa.table({"prompt": ["a"]}),
            r"a value of type Table was given, .* to_pylist\(\) of pyarrow",
        ),
        (
            [{"id": 1, "prompt": b"p"}],
            "record 1: field `prompt` holds what JSON cannot: a column holds bytes",
        ),
        ([{"prompt": {(1, 2): "p"}}], "record 1: field `prompt` holds what JSON cannot: keys must"),
        ([{("a", "b"): "p"}], "record 1: field .* holds what JSON cannot: keys must be str"),
    ],
)
def test_what_is_no_record_is_named(records: Any, said: str) -> None:  # noqa: ANN401 - on purpose
    with pytest.raises(InputError, match=said):
        list(record_lines(records))


def test_the_python_interface_refuses_what_is_no_record(tmp_path: Any) -> None:  # noqa: ANN401
    wrong: Any = ["a"]
    said, model = "record 1: is of type str", "embedded"
    with fam_engine.Scorer(model) as scorer, pytest.raises(InputError, match=said):
        scorer.score(wrong)
    with fam_engine.Generator(model) as generator, pytest.raises(InputError, match=said):
        generator.generate(wrong)
    with pytest.raises(InputError, match=said):
        fam_engine.Trainer(model).train(wrong, tmp_path)


def test_a_data_frame_is_told_what_to_give_instead() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a"], "response": ["b"]})
    with pytest.raises(InputError, match=r'of type DataFrame was given, .*to_dict\("records"\)'):
        list(record_lines(frame))
    assert len(list(record_lines(frame.to_dict("records")))) == 1


@pytest.mark.parametrize("model", [None, 7, b"embedded"])
def test_what_can_be_no_model_is_refused(model: Any) -> None:  # noqa: ANN401 - on purpose
    with pytest.raises(ModelRefusedError, match=r"of type \w+ was given, expected a folder"):
        fam_engine.Scorer(model)


def test_what_tables_have_and_json_has_not_becomes_its_nearest() -> None:
    record = {
        "prompt": "caf\u00e9 \ud800",
        "margin": float("nan"),
        "score": np.float32("inf"),
        "rank": np.int64(3),
        "correct": np.bool_(True),
        "when": datetime.date(2026, 1, 2),
        "at": np.datetime64("2026-01-02T03:04:05", "ns"),
        "never": np.array(["NaT", "2026-01-02"], "M8[ns]"),
        "messages": np.array([{"role": "user", "weight": np.float64("nan")}], object),
        "vector": np.array([0.5, np.nan]),
    }
    [line] = record_lines([record])
    assert line.isascii()
    assert json.loads(line) == {
        "prompt": "caf\u00e9 \ud800",
        "margin": None,
        "score": None,
        "rank": 3,
        "correct": True,
        "when": "2026-01-02",
        "at": "2026-01-02T03:04:05.000000000",
        "never": [None, "2026-01-02T00:00:00.000000000"],
        "messages": [{"role": "user", "weight": None}],
        "vector": [0.5, None],
    }


def test_rows_of_a_data_frame_are_scored_whatever_their_other_columns_hold() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "prompt": ["2 + 3?\n", "2 + 4?\n"],
            "response": ["5", "6"],
            "margin": [None, 0.5],
            "when": [pandas.NaT, pandas.Timestamp(2026, 1, 2)],
            "count": pandas.array([None, 2], dtype="Int64"),
        }
    )
    with fam_engine.Scorer("embedded") as scorer:
        table = scorer.score(frame.to_dict("records"))
    assert table["nll_sum"].null_count == 0


GOOD = [{"prompt": f"{n} + 3 = ", "response": "5"} for n in range(3)]


@pytest.mark.parametrize("bad", [{"prompt": 3, "response": "5"}, {"prompt": "a " * 2000}])
def test_a_fault_is_told_before_anything_is_computed(
    bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.jobs.generation.texts import TextMaker
    from fam_engine.jobs.scoring.entries import EntryScorer

    computed: list[object] = []
    for kind in (TextMaker, EntryScorer):
        monkeypatch.setattr(kind, "run", lambda *_: computed.append(1))
    record = {"response": "5", **bad}
    with fam_engine.Scorer("embedded") as scorer, fam_engine.Generator("embedded") as generator:
        for ask in (scorer.score, generator.generate):
            with pytest.raises(InputError, match="record 4: "):
                ask([*GOOD, record])
            with pytest.raises(InputError, match="record 1: ") as caught:
                ask([record])
            assert "--" not in caught.value.message
        assert not computed

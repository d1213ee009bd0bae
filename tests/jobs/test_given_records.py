from __future__ import annotations

import datetime
from typing import Any

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
        ([{"prompt": datetime.date(2026, 1, 1)}], "record 1: holds what JSON cannot: .*date"),
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

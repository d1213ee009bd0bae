"""A scorer that travels: bad records beside good ones, what it pickles to, and where it refuses to load."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fam_engine.errors import InputError, ModelRefusedError, UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer
from fam_engine.jobs.scoring.scorer import Scorer

GOOD = [{"prompt": "one\n", "response": "two"}, {"prompt": "one\n", "response": "three"}]


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> LazyScorer:
    return LazyScorer(tiny_model, precision="fp32", device="cpu")


def test_a_bad_record_stops_no_other(scorer: LazyScorer, tiny_model: Path) -> None:
    bad = [{"prompt": "a", "response": ""}, {"prompt": "a", "response": "x" * 300}]
    table = scorer.score_each([bad[0], GOOD[0], bad[1], GOOD[1]])
    codes = [error and error.split(":")[0] for error in table["error"].to_pylist()]
    assert codes == ["E_EMPTY_RESPONSE", None, "E_TOO_LONG", None]
    assert table["nll_sum"].is_null().to_pylist() == [True, False, True, False]
    with Scorer(tiny_model, precision="fp32", device="cpu") as alone:
        expected = alone.score(GOOD).column("nll_sum").to_pylist()
    assert table["nll_sum"].drop_null().to_pylist() == expected


def test_nor_does_one_that_is_no_record_or_that_json_cannot_hold(scorer: LazyScorer) -> None:
    bad: list[Any] = [None, GOOD[0] | {"response": b"two"}, GOOD[0] | {"rank": {1, 2}}]
    alone = scorer.score_each(GOOD)
    # Both first, where the form of the records is not known yet, and among others.
    table = scorer.score_each([bad[0], GOOD[0], *bad[1:], GOOD[1]])
    errors = table["error"].to_pylist()
    assert errors[0] == "E_RECORDS: is of type NoneType, expected a dict"
    told = (
        "E_RECORDS: field `response` holds what JSON",
        "E_RECORDS: field `rank` holds what JSON",
    )
    assert all(error.startswith(said) for error, said in zip(errors[2:4], told, strict=True))
    assert [errors[1], errors[4]] == [None, None]
    assert table["nll_sum"].drop_null().to_pylist() == alone["nll_sum"].to_pylist()
    assert table.schema == alone.schema
    assert scorer.score_each(bad)["error"].null_count == 0


def test_a_scorer_tells_the_first_fault_whether_others_are_usable_or_not(tiny_model: Path) -> None:
    long = {"prompt": "a" * 300, "response": "b"}
    with Scorer(tiny_model, precision="fp32", device="cpu") as alone:
        for records in ([long], [long, GOOD[0]], [long, {"prompt": "a", "response": ""}]):
            with pytest.raises(InputError) as caught:
                alone.score(records)
            assert (caught.value.code, caught.value.where) == ("E_TOO_LONG", "record 1")
            assert caught.value.message == "is 302 tokens long, expected at most 256"
        with pytest.raises(InputError) as caught:
            alone.token_logprobs(**long)
        assert caught.value.code == "E_TOO_LONG"
        (error,) = alone.score_each([long])["error"].to_pylist()
        assert error == "E_TOO_LONG: is 302 tokens long, expected at most 256"
        with pytest.raises(InputError, match="E_INPUT_EMPTY"):
            alone.score([])


def test_what_is_no_list_of_records_still_raises(scorer: LazyScorer) -> None:
    wrong: Any = GOOD[0]
    with pytest.raises(InputError, match="a value of type dict was given, expected a list"):
        scorer.score_each(wrong)


def test_no_good_record_at_all_and_no_record(scorer: LazyScorer) -> None:
    assert scorer.score_each([{"prompt": "a", "response": ""}] * 2).num_rows == 2
    assert scorer.score_each([]).num_rows == 0


def test_it_pickles_to_the_same_few_bytes_before_and_after_loading(
    scorer: LazyScorer, tiny_model: Path
) -> None:
    scorer.score_each(GOOD)
    fresh = LazyScorer(tiny_model, precision="fp32", device="cpu")
    assert pickle.dumps(scorer) == pickle.dumps(fresh)
    assert len(pickle.dumps(scorer)) < 1000
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy.score_each(GOOD).equals(scorer.score_each(GOOD))


def test_what_it_pickles_to_depends_on_settings_and_on_the_bytes_of_model_and_template(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")

    def state(**settings: object) -> bytes:
        return pickle.dumps(LazyScorer(folder, template=str(template), **settings))  # type: ignore[arg-type]

    states = [state(), state(precision="fp32"), state(chat_template_kwargs={"a": 1})]
    template.write_text("{{ messages[0].content }}!")
    states.append(state())
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    states.append(state())
    assert len(set(states)) == 5
    assert state() == states[-1]


def test_it_refuses_to_load_where_threads_were_lost_in_a_fork(tiny_model: Path) -> None:
    code = f"""
import os
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer
scorers = [LazyScorer({str(tiny_model)!r}, precision="fp32", device="cpu") for _ in range(2)]
scorers[0].score_each([{GOOD[0]!r}])
child = os.fork()
if child == 0:
    refused = 0
    for scorer in scorers:  # one that came with its model, one that would load it
        try:
            scorer.score_each([{GOOD[0]!r}])
        except UsageError as error:
            refused += error.code == "E_FORKED"
    os._exit(7 if refused == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_it_refuses_to_load_where_a_plain_scorer_had_started_the_threads(tiny_model: Path) -> None:
    code = f"""
import os
from fam_engine.errors import UsageError
from fam_engine import Scorer
from fam_engine.jobs.scoring.lazy_scorer import LazyScorer
settings = dict(precision="fp32", device="cpu")
Scorer({str(tiny_model)!r}, **settings).score([{GOOD[0]!r}])
lazy = LazyScorer({str(tiny_model)!r}, **settings)
child = os.fork()
if child == 0:
    code = ""
    try:
        lazy.score_each([{GOOD[0]!r}])
    except UsageError as error:
        code = error.code
    os._exit(7 if code == "E_FORKED" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "int8"}, "precision is 'int8', expected one of nf4, bf16, fp32"),
        ({"device": "tpu"}, "device is 'tpu', expected one of auto, cpu, cuda"),
        ({"compute_dtype": "fp8"}, "compute_dtype is 'fp8', expected one of"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0, expected a whole number"),
        ({"template": "/nowhere.jinja"}, "/nowhere.jinja: cannot be read as a template"),
        ({"chat_template_kwargs": {"mood": 1}}, "there is no chat template to read them"),
    ],
)
def test_what_can_be_told_without_the_model_is_told_at_once(
    tiny_model: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        LazyScorer(tiny_model, **settings)


def test_a_model_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="not a folder"):
        LazyScorer(tmp_path / "nowhere")

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine import Request, ResidentModel, Sampling, Scorer
from fam_engine.errors import InputError, ModelRefusedError, UsageError


@pytest.fixture(scope="module")
def model(bos_model: Path) -> Iterator[ResidentModel]:
    with ResidentModel(bos_model, precision="fp32", device="cpu") as made:
        yield made


TEXTS = ["a b", "", "<s>a", "a<s>", "</s>", "caf\u00e9 \U0001f34e", " a"]


def test_texts_become_the_ids_of_transformers(model: ResidentModel, bos_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bos_model / "tokenizer.json"))
    for text, ids, bare in zip(
        TEXTS, model.encode(TEXTS), model.encode(TEXTS, add_bos=False), strict=True
    ):
        assert bare.tolist() == tokenizer.encode(text, add_special_tokens=False)
        expected = bare.tolist() if text.startswith("<s>") else tokenizer.encode(text)
        assert ids.tolist() == expected


def test_bos_is_put_first_once(model: ResidentModel) -> None:
    for text, ids in zip(TEXTS, model.encode(TEXTS, add_bos=True), strict=True):
        assert ids[0] == model.bos_token_id == 0
        assert ids[:2].tolist() != [0, 0], text


def test_special_tokens_are_known_by_name(model: ResidentModel) -> None:
    assert (model.bos_token_id, model.eos_token_id, model.max_length) == (0, 1, 256)


def test_special_tokens_are_known_where_only_the_older_file_or_the_tokenizer_has_them(
    bos_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(bos_model, folder)
    (folder / "tokenizer_config.json").unlink()
    with ResidentModel(folder, precision="fp32", device="cpu") as nameless:
        assert (nameless.bos_token_id, nameless.eos_token_id) == (0, None)
        assert nameless.encode(["<s>a", "a"])[0].tolist() == nameless.encode(["a"])[0].tolist()
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    with ResidentModel(folder, precision="fp32", device="cpu") as older:
        assert (older.bos_token_id, older.eos_token_id) == (0, 1)


def test_a_length_beyond_the_model_is_refused(bos_model: Path) -> None:
    with pytest.raises(UsageError, match="at most 256"):
        ResidentModel(bos_model, max_length=257, precision="fp32", device="cpu")
    with pytest.raises(ModelRefusedError, match="not a folder"):
        ResidentModel(bos_model, adapter="nowhere", precision="fp32", device="cpu")


@pytest.mark.parametrize("value", [0, -5, 2.5, "abc", True])
@pytest.mark.parametrize("name", ["max_length", "max_tokens_per_batch"])
def test_a_number_of_tokens_is_whole_and_above_0(bos_model: Path, name: str, value: Any) -> None:  # noqa: ANN401
    said = f"{name} is {value!r}, expected a whole number of at least 1"
    with pytest.raises(UsageError, match=said):
        ResidentModel(bos_model, **{name: value})
    if name == "max_tokens_per_batch":
        with pytest.raises(UsageError, match=said):
            Scorer(bos_model, max_tokens_per_batch=value)


def test_a_text_says_which_token_ended_it(model: ResidentModel) -> None:
    context = np.array([0, 40], np.int32)
    [text] = model.generate([Request(context, seed=0)], Sampling(max_new_tokens=3))
    assert text.finish_reason == "length"
    assert text.end_token_id is None
    # What it wrote second ends it, if that is among the end tokens.
    ends = model.generator._model.ends.token_ids
    second = int(text.token_ids[1])
    object.__setattr__(model.generator._model.ends, "token_ids", ends | {second})
    try:
        [ended] = model.generate([Request(context, seed=0)], Sampling(max_new_tokens=3))
    finally:
        object.__setattr__(model.generator._model.ends, "token_ids", ends)
    assert (ended.finish_reason, ended.end_token_id) == ("eos", second)
    assert ended.token_ids.tolist() == text.token_ids[:1].tolist()


@pytest.fixture(scope="module")
def short(bos_model: Path) -> Iterator[ResidentModel]:
    with ResidentModel(bos_model, precision="fp32", device="cpu", max_length=8) as made:
        yield made


def ids(count: int) -> Any:  # noqa: ANN401
    return np.arange(2, 2 + count, dtype=np.int32)


def test_nothing_is_scored_beyond_its_length(short: ResidentModel, model: ResidentModel) -> None:
    """The last target is predicted, never fed: 3 + 6 tokens take 8 places."""
    [fits] = short.continuations([(ids(3), ids(6))])
    assert len(fits.facts) == 6
    with pytest.raises(InputError, match=r"\[E_TOO_LONG\] pair 1: takes 9 tokens .* at most 8"):
        short.continuations([(ids(3), ids(6)), (ids(3), ids(7))])
    assert len(next(model.continuations([(ids(100), ids(157))])).facts) == 157
    with pytest.raises(InputError, match="pair 0: takes 257 tokens"):
        model.continuations([(ids(100), ids(158))])


def test_nothing_is_written_beyond_its_length(short: ResidentModel, model: ResidentModel) -> None:
    long = Sampling(max_new_tokens=20)
    [free] = model.generate([Request(ids(3), seed=0)], long)
    [text] = short.generate([Request(ids(3), seed=0)], long)
    assert len(free.token_ids) > 5
    assert text.token_ids.tolist() == free.token_ids[:5].tolist()
    assert text.finish_reason == "length"
    [nothing] = short.generate([Request(ids(8), seed=0)], long)
    assert (len(nothing.token_ids), nothing.finish_reason) == (0, "length")
    with pytest.raises(InputError, match=r"\[E_TOO_LONG\].* 9 tokens, expected at most 8"):
        list(short.generate([Request(ids(9), seed=0)], long))


# The vocabulary has 258 tokens.
WRONG_IDS = [
    (np.array([0, -1], np.int32), "token id -1, expected 0 to"),
    (np.array([0, 2**32 + 5]), "token id 4294967301, expected 0 to"),
    (np.array([0.0, 5.7]), "float64, expected a list of whole numbers"),
    (np.array([True, False]), "bool, expected a list of whole numbers"),
    (np.array([[0, 5]], np.int32), "2 dimensions of int32, expected a list of whole numbers"),
    ([0, [5]], "cannot be read as token ids"),
    ("text", "0 dimensions of <U4"),
    (None, "0 dimensions of object"),
]


@pytest.mark.parametrize(("wrong", "said"), [*WRONG_IDS, ([0, 258], "258, expected 0 to 257")])
def test_what_are_no_ids_of_the_model_are_refused(
    model: ResidentModel,
    wrong: Any,  # noqa: ANN401
    said: str,
) -> None:
    with pytest.raises(UsageError, match=f"E_TOKEN_IDS.*the context of pair 1 .*{said}"):
        model.continuations([(ids(2), ids(2)), (wrong, ids(2))])
    with pytest.raises(UsageError, match=f"the target of pair 0 .*{said}"):
        model.continuations([(ids(2), wrong)])
    with pytest.raises(UsageError, match=f"context_ids .*{said}"):
        list(model.generate([Request(wrong, seed=0)], Sampling(max_new_tokens=1)))


def test_ids_of_any_whole_type_are_the_same_ids(model: ResidentModel) -> None:
    [expected] = model.continuations([(ids(4), ids(3))])
    for kind in (list, lambda a: a.astype(np.int64), lambda a: a.astype(">u2"), lambda a: a[::1]):
        [found] = model.continuations([(kind(ids(4)), kind(ids(3)))])
        assert found.facts.logprobs.tobytes() == expected.facts.logprobs.tobytes()
        assert Request(kind(ids(4)), seed=0).context_ids.dtype == np.int32
    assert len(next(model.continuations([(ids(4), [])])).facts) == 0  # type: ignore[list-item]


def test_without_a_context_there_is_nothing_to_continue(model: ResidentModel) -> None:
    with pytest.raises(UsageError, match="the context of pair 0 is empty"):
        model.continuations([(ids(0), ids(2))])
    with pytest.raises(UsageError, match="context_ids is empty"):
        Request(ids(0), seed=0)


@pytest.mark.parametrize("num_top", [-1, 259, 1.0, "1", True])
def test_more_likely_tokens_than_there_are_are_refused(model: ResidentModel, num_top: Any) -> None:  # noqa: ANN401
    with pytest.raises(UsageError, match=f"num_top is {num_top!r}, expected .* from 0 to 258"):
        model.continuations([(ids(2), ids(2))], num_top=num_top)
    [all_of_them] = model.continuations([(ids(2), ids(2))], num_top=258)
    assert all_of_them.top.token_ids.shape == (2, 258)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "1", True, None])
def test_a_request_is_for_at_least_one_text_and_has_a_whole_seed(wrong: Any) -> None:  # noqa: ANN401
    """A request for no text at all was continued for ever."""
    with pytest.raises(UsageError, match=f"num_samples is {wrong!r}, expected a whole number of"):
        Request(ids(2), seed=0, num_samples=wrong)
    if not isinstance(wrong, int) or wrong is True:
        with pytest.raises(UsageError, match=f"seed is {wrong!r}, expected a whole number"):
            Request(ids(2), seed=wrong)
    assert Request(ids(2), seed=-1).seed == -1

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.serving.conftest import Post, serving

if TYPE_CHECKING:
    from fam_engine.jobs.resident import ResidentModel

PATH = "/v1/completions"
PROMPT = "one two"
Truth = Callable[[list[int]], npt.NDArray[np.float64]]


def choices(post: Post, **fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    status, body = post(PATH, **fields)
    assert status == 200, body
    found: list[dict[str, Any]] = body["choices"]
    assert [choice["index"] for choice in found] == list(range(len(found)))
    return found


@pytest.fixture(scope="session")
def truth(bos_model: Path) -> Truth:
    """Give the log-prob of every token in every place, by transformers in float64."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(bos_model, dtype=torch.float64)

    @torch.inference_mode()
    def logprobs(ids: list[int]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = (
            model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        )
        return found

    return logprobs


def test_echoed_logprobs_are_those_of_transformers(
    post: Post, resident: ResidentModel, truth: Truth
) -> None:
    [choice] = choices(post, prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    ids = resident.encode([PROMPT])[0].tolist()
    known = truth(ids)
    found = choice["logprobs"]
    assert choice["text"] == PROMPT
    assert found["tokens"] == ["<s>", *PROMPT]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    expected = [known[place, token] for place, token in enumerate(ids[1:])]
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=5e-5)
    for place, (token, top) in enumerate(
        zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True)
    ):
        best = np.sort(known[place])[::-1][:2]
        assert sorted(top.values(), reverse=True)[:2] == pytest.approx(best, abs=5e-5)
        assert top[token] == found["token_logprobs"][place + 1]
        assert 2 <= len(top) <= 3
    assert choice["finish_reason"] == "length"


def test_offsets_point_at_the_tokens(post: Post) -> None:
    prompt = "caf\u00e9 \U0001f34e!"
    [choice] = choices(post, prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    found = choice["logprobs"]
    shown = [
        (token, start)
        for token, start in zip(found["tokens"], found["text_offset"], strict=True)
        if token in ("c", "a", "f", " ")
    ]
    assert shown == [("c", 0), ("a", 1), ("f", 2), (" ", 4)]
    # A token of its own for each byte: the first begins its character, the others end it.
    assert found["text_offset"][4:6] == [3, 3]
    assert len(set(found["tokens"][7:11])) == 4


def test_ids_are_as_good_as_texts(post: Post, resident: ResidentModel) -> None:
    ids = [one.tolist() for one in resident.encode(["one two", "three"])]
    asked = {"max_tokens": 5, "temperature": 0, "echo": True, "logprobs": 1}
    of_texts = choices(post, prompt=["one two", "three"], **asked)
    of_ids = choices(post, prompt=ids, **asked)
    alone = choices(post, prompt=ids[1], **asked)
    for one, other in zip(of_texts, of_ids, strict=True):
        assert one["logprobs"]["token_logprobs"] == other["logprobs"]["token_logprobs"]
        assert other["text"] == "<s>" + one["text"]
    assert alone[0]["logprobs"] == of_ids[1]["logprobs"]


@pytest.mark.parametrize("prompt", ["one two", "three", "a"])
def test_a_token_read_off_the_scores_is_the_one_that_is_written(post: Post, prompt: str) -> None:
    # What lm-eval asks: echo, logprobs, one greedy token.
    asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    [read] = choices(post, **asked, echo=True, logprobs=1)
    [written] = choices(post, **asked, logprobs=1)
    assert read["token_ids"] == written["token_ids"]
    assert read["text"] == prompt + written["text"]
    assert read["finish_reason"] == written["finish_reason"]
    assert len(read["logprobs"]["tokens"]) == len(read["prompt_token_ids"]) + 1
    last = read["logprobs"]["token_logprobs"][-1]
    assert last == pytest.approx(written["logprobs"]["token_logprobs"][-1], abs=1e-5)


def test_an_end_token_is_a_token_without_a_text(
    bos_model: Path, tmp_path: Path, truth: Truth
) -> None:
    # lm-eval leaves out the last token of an answer: with the end token missing, a real one.
    ids = [0, 40, 50]
    best = int(truth(ids)[-1].argmax())
    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": best}
    (folder / "config.json").write_text(json.dumps(config))
    with serving(folder) as post:
        for echo in (True, False):
            status, body = post(
                PATH,
                prompt=ids,
                max_tokens=1,
                temperature=0,
                logprobs=0,
                echo=echo,
                return_token_ids=True,
            )
            [choice] = body["choices"]
            assert status == 200
            assert choice["token_ids"] == [best]
            assert choice["finish_reason"] == "stop"
            assert not choice["text"].endswith(chr(best))
            assert len(choice["logprobs"]["tokens"]) == (4 if echo else 1)
            assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(
                truth(ids)[-1, best], abs=5e-5
            )
            assert body["usage"]["completion_tokens"] == 1


def test_what_a_template_ends_turns_with_is_text_like_any_other(
    post: Post, bos_model: Path, tmp_path: Path
) -> None:
    # There is no template here; and lm-eval would leave out a real token in the place of this one.
    asked = {"temperature": 0, "return_token_ids": True}
    [plain] = choices(post, prompt=PROMPT, max_tokens=30, **asked)
    turn_end = next(c for c in plain["text"] if c.isascii() and c.isalnum())
    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A: "
        f"{{% else %}}{{{{ m.content }}}}{turn_end}{{% endif %}}{{% endfor %}}"
    )
    before = plain["prompt_token_ids"] + plain["token_ids"][: plain["text"].index(turn_end)]
    with serving(folder) as post_there:
        assert choices(post_there, prompt=PROMPT, max_tokens=30, **asked) == [plain]
        [read] = choices(post_there, prompt=before, max_tokens=1, echo=True, logprobs=1, **asked)
    assert read["logprobs"]["tokens"][len(before) :] == [turn_end]
    assert read["finish_reason"] == "length"


def test_prompt_logprobs_are_by_id_and_the_token_comes_first(
    post: Post, resident: ResidentModel, truth: Truth
) -> None:
    [choice] = choices(post, prompt=PROMPT, max_tokens=0, prompt_logprobs=1)
    ids = resident.encode([PROMPT])[0].tolist()
    known = truth(ids)
    found = choice["prompt_logprobs"]
    assert found[0] is None
    assert choice["logprobs"] is None
    assert choice["text"] == ""
    for place, (token_id, entry) in enumerate(zip(ids[1:], found[1:], strict=True)):
        assert next(iter(entry)) == str(token_id)
        assert entry[str(token_id)]["logprob"] == pytest.approx(known[place, token_id], abs=5e-5)
        rank = 1 + int((known[place] > known[place, token_id]).sum())
        assert entry[str(token_id)]["rank"] == min(rank, 100)
        assert str(known[place].argmax()) in entry


def test_samples_differ_and_come_again_with_their_seed(post: Post) -> None:
    asked = {"prompt": [PROMPT, "three"], "n": 3, "max_tokens": 12, "temperature": 1.0}
    first = choices(post, **asked, seed=7)
    again = choices(post, **asked, seed=7)
    other = choices(post, **asked, seed=8)
    texts = [choice["text"] for choice in first]
    assert len(texts) == 6
    assert len(set(texts[:3])) > 1
    assert texts == [choice["text"] for choice in again]
    assert texts != [choice["text"] for choice in other]


def test_equal_prompts_get_texts_of_their_own_unless_a_seed_is_given(post: Post) -> None:
    asked = {"prompt": [PROMPT] * 8, "max_tokens": 12, "temperature": 1.0}
    assert len({choice["text"] for choice in choices(post, **asked)}) > 1
    assert len({choice["text"] for choice in choices(post, **asked, seed=7)}) == 1


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(post: Post) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0}
    [whole] = choices(post, **asked)
    stop = next(c for c in whole["text"][5:] if c.isascii() and c.isprintable())
    [cut] = choices(post, **asked, stop=[stop])
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"


def test_logprobs_of_a_text_are_those_of_scoring_it(post: Post, resident: ResidentModel) -> None:
    [choice] = choices(
        post,
        prompt=PROMPT,
        max_tokens=6,
        temperature=0.8,
        seed=3,
        logprobs=1,
        return_token_ids=True,
    )
    pair = (
        np.array(choice["prompt_token_ids"], np.int32),
        np.array(choice["token_ids"], np.int32),
    )
    [score] = resident.continuations([pair])
    assert choice["logprobs"]["token_logprobs"] == score.facts.logprobs.tolist()
    assert all(math.isfinite(value) for value in choice["logprobs"]["token_logprobs"])


def test_null_is_as_good_as_absent(post: Post) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    nulls = dict.fromkeys(
        ["stop", "logprobs", "echo", "n", "seed", "suffix", "logit_bias", "stream", "user"]
    )
    assert choices(post, **asked) == choices(post, **asked, **nulls)
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "logit_bias": {}}
    assert choices(post, **asked) == choices(post, **asked, **neutral, stream=False, n=1)

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.conftest import Post, asking, make_service, serving

if TYPE_CHECKING:
    from fam_engine.jobs.resident import ResidentModel

PATH = "/v1/score"
PROMPT = "how many apples?\n"
RESPONSES = ["one", "two pears and more", "e", "</s>", "caf\u00e9"]


def scored(post: Post, **fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    status, body = post(PATH, **fields)
    assert status == 200, body
    data: list[dict[str, Any]] = body["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return data


def test_scores_have_the_bits_of_the_scoring_job(post: Post, bos_model: Path) -> None:
    from fam_engine import Scorer

    records = [{"prompt": PROMPT, "response": response} for response in RESPONSES]
    with Scorer(bos_model, precision="fp32", device="cpu") as scorer:
        rows = scorer.score(records).to_pylist()
    found = scored(post, prompt=PROMPT, responses=RESPONSES)
    for row, one in zip(rows, found, strict=True):
        shared = set(row) & set(one)
        # All but what places a record in a data file, as the documentation says.
        place = {"id", "file", "line", "source", "group", "correct", "text_digest"}
        assert set(row) - shared == place
        assert {"nll_sum", "perplexity", "eos_nll", "rank_mean", "flags", "num_bytes"} <= shared
        assert {name: row[name] for name in shared} == {name: one[name] for name in shared}
    assert found[3]["flags"] == ["special_in_text"]


def test_tokens_add_up_to_the_score(post: Post) -> None:
    for one in scored(post, prompt=PROMPT, responses=RESPONSES, tokens=True):
        count = one["num_response_tokens"]
        lists = [one[name] for name in ("token_ids", "logprobs", "ranks", "entropies")]
        assert [len(values) for values in lists] == [count] * 4
        assert -sum(one["logprobs"]) == pytest.approx(one["nll_sum"])


def test_the_prompt_is_computed_once(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    from fam_engine.model.decoder import Decoder

    seen: list[int] = []
    whole = Decoder.hidden_rows

    def counting(self: Decoder, batch: Any, **rest: Any) -> Any:  # noqa: ANN401
        seen.append(len(batch.input_ids))
        return whole(self, batch, **rest)

    monkeypatch.setattr(Decoder, "hidden_rows", counting)
    scored(post, prompt="a" * 120, responses=["b"] * 20)
    assert sum(seen) == 192  # 121 of the prompt, 20 responses of one token to feed, on a grid of 64


def test_a_prompt_too_long_is_encoded_once_whatever_the_number_of_responses(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    whole = resident.encoder.encode

    def counting(records: Any, **rest: Any) -> Any:  # noqa: ANN401
        asked.append(len(records))
        return whole(records, **rest)

    monkeypatch.setattr(resident.encoder, "encode", counting)
    with asking(make_service(resident, max_body_bytes=1 << 20)) as post:
        status, body = post(PATH, prompt="a" * 400_000, responses=["b"] * 32)
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert asked == [1]
        scored(post, prompt="a", responses=["b"] * 32)
    assert asked[1:] == [1, 31]


def test_ids_are_taken_as_they_are(post: Post, resident: ResidentModel) -> None:
    context, *responses = (ids.tolist() for ids in resident.encode([PROMPT, "one", "two"]))
    responses = [ids[1:] for ids in responses]  # no BOS within
    of_ids = scored(post, prompt=context, responses=responses, tokens=True)
    of_texts = scored(post, prompt=PROMPT, responses=["one", "two"], tokens=True)
    end = resident.encoder.end_of_turn_ids.tolist()
    ended = scored(post, prompt=context, responses=[ids + end for ids in responses], tokens=True)
    for whole, other in zip(ended, of_texts, strict=True):
        assert whole["logprobs"] == [*other["logprobs"], -other["eos_nll"]]
    for one, other in zip(of_ids, of_texts, strict=True):
        assert one["token_ids"] == other["token_ids"]
        # The end of the turn makes the text longer by a token: products of other shapes.
        assert one["nll_sum"] == pytest.approx(other["nll_sum"], rel=1e-6)
        assert one["eos_nll"] is one["num_bytes"] is one["bits_per_byte"] is None
        assert other["eos_nll"] is not None


def with_template(model: Path, tmp_path: Path, template: str) -> Path:
    """Copy a model and give it a chat template."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_messages_go_through_the_template(bos_model: Path, tmp_path: Path) -> None:
    from fam_engine import Scorer

    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = with_template(bos_model, tmp_path, template)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a pear?"}]
    with Scorer(folder, precision="fp32", device="cpu") as scorer:
        [row] = scorer.score([{"messages": turns, "response": "yes"}]).to_pylist()
    with serving(folder) as post:
        [one] = scored(post, messages=turns, responses=["yes"])
        [as_prompt] = scored(post, prompt="a pear?", responses=["yes"])
    assert one["nll_sum"] == row["nll_sum"]
    assert one["num_prompt_tokens"] == row["num_prompt_tokens"]
    assert as_prompt["num_prompt_tokens"] < one["num_prompt_tokens"]


def test_tools_reasoning_and_parts_are_those_of_files(bos_model: Path, tmp_path: Path) -> None:
    from fam_engine import Scorer

    template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]"
        "{{ m.reasoning_content }}{{ m.content }}{{ (m.tool_calls or []) | tojson }}</s>{% endfor %}"
        "{{ mood }}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = with_template(bos_model, tmp_path, template)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "pear?"}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "3"},
    ]
    told = {"tools": [{"name": "f"}], "chat_template_kwargs": {"mood": "calm"}}
    row = {"messages": turns, **told, "response": "yes"}
    with Scorer(folder, precision="fp32", device="cpu") as scorer:
        [expected] = scorer.score([row]).to_pylist()
    with serving(folder) as post:
        [one] = scored(post, messages=turns, **told, responses=["yes"])
        kwargs = {"chat_template_kwargs": told["chat_template_kwargs"]}
        calm, plain = (
            scored(post, prompt="a", **more, responses=["b"])[0] for more in (kwargs, {})
        )
        wrong = [
            post(PATH, prompt="a", tools=told["tools"], responses=["yes"]),
            post(PATH, prompt=[1], **kwargs, responses=[[2]]),
            post(PATH, prompt="a", chat_template_kwargs={"moood": "calm"}, responses=["b"]),
        ]
    assert calm["num_prompt_tokens"] - plain["num_prompt_tokens"] == len("calm")
    assert [status for status, _ in wrong] == [400, 400, 400]
    assert wrong[2][1]["error"]["param"] == "chat_template_kwargs"
    assert "`moood`, which the chat template does not read" in wrong[2][1]["error"]["message"]
    assert one["nll_sum"] == expected["nll_sum"]
    assert one["num_prompt_tokens"] == expected["num_prompt_tokens"]


def test_what_the_template_refuses_is_not_blamed_on_the_responses(
    bos_model: Path, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with serving(with_template(bos_model, tmp_path, template)) as post:
        for param, asked in (
            ("prompt", {"prompt": "no"}),
            ("messages", {"messages": [{"role": "user", "content": "no"}]}),
        ):
            status, body = post(PATH, **asked, responses=["a", "b"])
            assert (status, body["error"]["param"]) == (400, param)
            assert body["error"]["code"].startswith("E_TEMPLATE")
            assert "not that" in body["error"]["message"]
        assert scored(post, prompt="yes", responses=["a", "b"])


def test_usage_counts_the_prompt_once(post: Post) -> None:
    _, body = post(PATH, prompt=PROMPT, responses=["one", "two"])
    assert body["usage"] == {
        "prompt_tokens": len(PROMPT) + 1,
        "completion_tokens": 6,
        "total_tokens": len(PROMPT) + 7,
    }
    json.dumps(body, allow_nan=False)


def test_arguments_of_calls_may_be_json_as_openai_has_it(bos_model: Path, tmp_path: Path) -> None:
    """The template reads an object either way, as vLLM hands it one."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
        "{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = with_template(bos_model, tmp_path, template)

    def turns(arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return [
            {"role": "user", "content": "a?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
        ]

    with serving(folder) as post:
        sums = [
            scored(post, messages=turns(arguments), responses=["b"])[0]["nll_sum"]
            for arguments in ('{"a": 1}', {"a": 1}, "", {})
        ]
    assert sums[0] == sums[1]
    assert sums[2] == sums[3]
    assert sums[0] != sums[2]

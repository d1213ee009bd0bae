"""The official client of OpenAI, and lm-evaluation-harness' `local-completions`, against a socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.conftest import NAME


def test_the_openai_client(address: str) -> None:
    openai = pytest.importorskip("openai", reason="needs the package `openai`")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).id == NAME
        answer = client.completions.create(
            model=NAME,
            prompt=["one", "two"],
            max_tokens=4,
            temperature=0,
            echo=True,
            logprobs=2,
            seed=1,
            extra_body={"prompt_logprobs": 0, "return_token_ids": True},
        )
        assert [choice.text[:3] for choice in answer.choices] == ["one", "two"]
        first = answer.choices[0]
        assert first.finish_reason in ("stop", "length")
        assert first.logprobs.token_logprobs[0] is None
        assert len(first.logprobs.tokens) == 8 == len(first.logprobs.text_offset)
        assert len(first.prompt_logprobs) == len(first.prompt_token_ids) == 4
        assert answer.usage.total_tokens == 16
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="other", prompt="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model=NAME, prompt="a", max_tokens=10**9)
        assert wrong.value.param == "max_tokens"


def test_lm_eval_gets_the_same_figures_over_http(
    address: str, bos_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs the package `lm-eval`")
    pytest.importorskip("tenacity", reason="needs the package `lm-eval[api]`")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from fam_engine.integrations.lm_eval import FamEngineLM

    def requests(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
        return [
            Instance(request_type=kind, doc={}, arguments=one, idx=i)
            for i, one in enumerate(arguments)
        ]

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    ours = FamEngineLM(str(bos_model), precision="fp32", device="cpu")
    for concurrent, size in ((1, 3), (2, 1)):
        http = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model=NAME,
            tokenizer=str(bos_model),
            max_length=256,
            add_bos_token=True,
            batch_size=size,
            num_concurrent=concurrent,
        )
        pairs = requests(
            "loglikelihood", ("one", " two"), ("one", " three"), ("how many?", " 5"), ("a", "b")
        )
        for (logprob, is_greedy), (other, also) in zip(
            ours.loglikelihood(pairs, disable_tqdm=True), http.loglikelihood(pairs), strict=True
        ):
            assert other == pytest.approx(logprob, abs=1e-4)
            assert also == is_greedy
        texts = requests("generate_until", ("one", {"until": ["\n"], "max_gen_toks": 8}))
        assert http.generate_until(texts) == ours.generate_until(texts, disable_tqdm=True)

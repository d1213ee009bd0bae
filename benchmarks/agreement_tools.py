"""The tools of the agreement table: each gives the log-probs of the same token ids, by its own code.

In: records as texts and as ids. Out: log-probs of the response tokens in nats, and the ids the tool's own tokenizer
gives the texts. Subjects of `fam_engine.jobs.bench.workers`, a process each. Every tool gets the ids, with BOS where
fam-engine puts it, so tokenization is not what differs; what a tool would have made of the texts stands beside it.

Records go through one by one where a tool leaves the choice, so that padding is not what differs either; lm-eval
batches, as its users do. The truth is transformers in float64 (its norms and angles stay fp32, an error of 1e-7) on the
weights as a row holds them: `fp32` as stored, `bf16` rounded, `nf4` quantized by bitsandbytes through transformers,
tables rounded to bf16.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Example:
    """One record.

    Attributes:
        text: Prompt and response.
        context: Ids of the prompt, BOS first where the model has one.
        response: Ids whose log-probs are asked for.
    """

    text: str
    context: list[int]
    response: list[int]

    @property
    def ids(self) -> list[int]:
        """Everything the model reads and predicts."""
        return self.context + self.response


@dataclass(frozen=True, eq=False)
class Answer:
    """What a tool says.

    Attributes:
        sums: A number a record: log-prob of the whole response.
        logprobs: An array a record: of each token; none where the tool gives sums only.
        own_ids: A list a record: the ids of the tool's own tokenizer.
        versions: Of what computed.
    """

    sums: list[float]
    logprobs: list[np.ndarray] = field(default_factory=list)
    own_ids: list[list[int]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def _answer(logprobs: Sequence[np.ndarray], own_ids: list[list[int]], *packages: str) -> Answer:
    sums = [float(np.sum(values, dtype=np.float64)) for values in logprobs]
    return Answer(sums, list(logprobs), own_ids, _versions(*packages))


def _versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


def _of_targets(logits_TV: np.ndarray, example: Example) -> np.ndarray:
    """Give the log-probs of the response, float64, from the logits after each id but the last."""
    rows = logits_TV[len(example.context) - 1 :].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(rows)), example.response]
    return chosen - np.log(np.exp(rows).sum(axis=1))


class Transformers:
    """transformers, with bitsandbytes where the weights are NF4.

    Args:
        folder: The model's.
        weights: `fp32`, `bf16` or `nf4`: how the weights are held.
        dtype: `fp64`, `fp32` or `bf16`: what is computed in.
    """

    def __init__(self, folder: str, weights: str, dtype: str) -> None:
        import torch
        import transformers

        computed = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        # NF4 comes of the weights as stored; rounding them first would give others.
        options: dict[str, Any] = {"dtype": "auto" if weights == "nf4" else torch.float32}
        if weights == "nf4":
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
            )
            options["device_map"] = "cpu"
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        if weights == "nf4" and dtype == "fp64":
            _dequantize(self._model)
        if weights == "nf4" and dtype == "fp32":
            # bitsandbytes' packed kernel for AVX512-BF16 multiplies in bf16 whatever it is asked for.
            for module in self._model.modules():
                module.support_avx512bf16_for_cpu = False
        _hold(self._model, weights, computed)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._packages = ("transformers", "torch", *(["bitsandbytes"] if weights == "nf4" else []))

    def run(self, examples: list[Example]) -> Answer:
        """Give the log-probs of every response."""
        own_ids = [self._tokenizer(one.text)["input_ids"] for one in examples]
        return _answer([self._logprobs(one) for one in examples], own_ids, *self._packages)

    def _logprobs(self, example: Example) -> np.ndarray:
        import torch

        with torch.inference_mode():
            logits_TV = self._model(input_ids=torch.tensor([example.ids[:-1]])).logits[0]
        return _of_targets(logits_TV.double().numpy(), example)


def _dequantize(model: Any) -> None:  # noqa: ANN401 - a model of transformers
    """Put in place of each NF4 matrix what bitsandbytes says it stands for."""
    import bitsandbytes
    import torch

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                state = module.weight.quant_state
                # As one row: the CPU kernel of 0.50 takes a shorter way where blocks cross rows.
                flat = torch.Size([1, state.shape.numel()])
                shape, state.shape, state.dtype = state.shape, flat, torch.float32
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
                plain = torch.nn.Linear(1, 1, bias=False)
                plain.weight = torch.nn.Parameter(weight.reshape(shape), requires_grad=False)
                plain.bias = module.bias
                setattr(parent, name, plain)


def _hold(model: Any, weights: str, computed: Any) -> None:  # noqa: ANN401
    """Round what the row rounds, then go to the dtype that is computed in."""
    import torch

    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            if weights == "bf16" or (weights == "nf4" and id(parameter) in tables):
                parameter.data = parameter.data.to(torch.bfloat16)
            parameter.data = parameter.data.to(computed)


class FamEngine:
    """fam-engine: what `fam-engine score` computes."""

    def __init__(self, folder: str, weights: str, dtype: str) -> None:
        from fam_engine import ResidentModel

        self._model = ResidentModel(
            folder, precision=weights, compute_dtype=dtype, device="cpu", template="none"
        )

    def run(self, examples: list[Example]) -> Answer:
        """Give the log-probs of every response; the ids are fam-engine's in the first place."""
        pairs = [
            (np.array(one.context, np.int32), np.array(one.response, np.int32)) for one in examples
        ]
        found = {one.index: one.facts.logprobs for one in self._model.continuations(pairs)}
        logprobs = [found[index] for index in range(len(pairs))]
        return _answer(logprobs, [one.ids for one in examples], "fam-engine", "torch")


class LmEval:
    """A model of lm-evaluation-harness, which gives sums.

    Args:
        folder: The model's.
        kind: `hf`, lm-eval's own Hugging Face model, or `fam-engine`.
    """

    def __init__(self, folder: str, kind: str) -> None:
        if kind == "hf":
            from lm_eval.models.huggingface import HFLM

            self._model: Any = HFLM(folder, dtype="float32", device="cpu", batch_size=8)
        else:
            from fam_engine.integrations.lm_eval import FamEngineLM

            self._model = FamEngineLM(folder, precision="fp32", device="cpu")
        self._packages = ("lm_eval", "transformers" if kind == "hf" else "fam-engine")

    def run(self, examples: list[Example]) -> Answer:
        """Give the log-likelihoods of every response."""
        asked = [
            ((str(index), ""), one.context, one.response) for index, one in enumerate(examples)
        ]
        found = self._model._loglikelihood_tokens(asked, disable_tqdm=True)
        own_ids = [self._model.tok_encode(one.text) for one in examples]
        return Answer([logprob for logprob, _ in found], [], own_ids, _versions(*self._packages))


class Server:
    """`fam-engine serve` over HTTP.

    Args:
        folder: The model's.
        path: `/v1/score`, or `/v1/completions` with `echo`, as lm-eval's `local-completions` and the
            `openai` client ask.
    """

    def __init__(self, folder: str, path: str) -> None:
        self._folder, self._path = folder, path

    def run(self, examples: list[Example]) -> Answer:
        """Give the log-probs of every response."""
        ask = _ask_score if self._path == "/v1/score" else _ask_completion
        with _serving(self._folder) as url:
            logprobs = [ask(url, one) for one in examples]
            own_ids = [_ask_ids(url, one) for one in examples]
        return _answer(logprobs, own_ids, "fam-engine", "starlette", "uvicorn")


@contextlib.contextmanager
def _serving(folder: str) -> Iterator[str]:
    """Start the server on a free port; give its address."""
    program = "from fam_engine.cli.main import main; main()"
    options = f"serve --model {folder} --served-model-name model --precision fp32 --port 0"
    command = [sys.executable, "-P", "-c", program, *options.split(), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield next(line.split()[-1] for line in server.stderr if line.startswith("serving "))
        finally:
            server.terminate()


def _post(url: str, path: str, **fields: object) -> dict[str, Any]:
    body = json.dumps({"model": "model", **fields}).encode()
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _ask_score(url: str, example: Example) -> np.ndarray:
    asked = {"prompt": example.context, "responses": [example.response], "tokens": True}
    return np.array(_post(url, "/v1/score", **asked)["data"][0]["logprobs"])


def _ask_completion(url: str, example: Example) -> np.ndarray:
    asked = {"prompt": example.ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    [choice] = _post(url, "/v1/completions", **asked)["choices"]
    return np.array(choice["logprobs"]["token_logprobs"][len(example.context) :])


def _ask_ids(url: str, example: Example) -> list[int]:
    asked = {"prompt": example.text, "max_tokens": 0, "echo": True, "return_token_ids": True}
    [choice] = _post(url, "/v1/completions", **asked)["choices"]
    ids: list[int] = choice["prompt_token_ids"]
    return ids


class LlamaCpp:
    """llama.cpp through llama-cpp-python.

    Args:
        file: A GGUF with the same weights, f32.
        cache: `f32`, or `f16`: of keys and values; llama.cpp's default is f16.
    """

    def __init__(self, file: str, cache: str) -> None:
        import llama_cpp

        kind = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}[cache]
        self._versions = {"llama-cpp-python": llama_cpp.__version__}
        self._model = llama_cpp.Llama(
            file, n_ctx=0, logits_all=True, type_k=kind, type_v=kind, verbose=False
        )

    def run(self, examples: list[Example]) -> Answer:
        """Give the log-probs of every response."""
        own_ids = [
            self._model.tokenize(one.text.encode(), add_bos=True, special=False) for one in examples
        ]
        answer = _answer([self._logprobs(one) for one in examples], own_ids)
        return replace(answer, versions=self._versions)

    def _logprobs(self, example: Example) -> np.ndarray:
        self._model.reset()
        self._model.eval(example.ids[:-1])
        return _of_targets(self._model.scores[: len(example.ids) - 1], example)

"""Configurations from strangers: code to run, sizes to allocate, values of other kinds, files that are none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from tests.hostile.case import Artefact, Case, harmless, refused

CONFIG = "config.json"


def given(**values: object) -> Callable[[Case], None]:
    return lambda case: case.edit(CONFIG, lambda config: config.update(values))


def text(content: bytes) -> Callable[[Case], object]:
    return lambda case: (case.model / CONFIG).write_bytes(content)


def with_code(*, architectures: list[str] | None) -> Callable[[Case], None]:
    """Bring a module of one's own that leaves a canary when it is imported."""

    def make(case: Case) -> None:
        (case.model / "modeling_evil.py").write_text(case.payload)
        (case.model / "configuration_evil.py").write_text(case.payload)
        names = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
        given(auto_map=names, architectures=architectures)(case)

    return make


def linked(case: Case) -> None:
    (case.model / CONFIG).rename(case.outside / CONFIG)
    case.link(CONFIG, case.outside / CONFIG)


def fifo(case: Case) -> None:
    (case.model / CONFIG).unlink()
    os.mkfifo(case.model / CONFIG)


def generation(case: Case) -> None:
    case.edit("generation_config.json", lambda values: values.update(eos_token_id=[10**9]))


CODE = "E_MODEL_CONFIG"
HUB = "someone/kernels:evil"
ARTEFACTS: list[Artefact] = [
    refused("code of its own, no architecture", with_code(architectures=None), CODE),
    harmless(
        "code of its own beside a known architecture", with_code(architectures=["LlamaForCausalLM"])
    ),
    refused("attention fetched from a hub", given(_attn_implementation_internal=HUB), CODE),
    harmless("attention named after a hub's kernel", given(_attn_implementation=HUB)),
    refused("architecture of another kind", given(architectures=["EvilForCausalLM"]), CODE),
    refused("10^9 tokens in the vocabulary", given(vocab_size=10**9), CODE),
    refused("10^9 layers", given(num_hidden_layers=10**9), CODE),
    refused("512 layers that are not there", given(num_hidden_layers=512), "E_MODEL_TENSOR"),
    refused("negative width", given(hidden_size=-64), CODE),
    refused("width of 10^400", given(hidden_size=10**400), CODE),
    refused("text where a number belongs", given(num_attention_heads="4"), CODE),
    refused("bool where a number belongs", given(num_hidden_layers=True), CODE),
    refused("NaN for an epsilon", given(rms_norm_eps=math.nan), CODE),
    refused("infinite rope base", given(rope_theta=math.inf), CODE),
    refused(
        "quantization with code",
        given(quantization_config={"quant_method": "evil", "modules": "os"}),
        CODE,
    ),
    refused("field nobody knows", given(surprise="os.system"), CODE),
    refused("the same field twice", text(b'{"vocab_size": 1, "vocab_size": 2}'), CODE),
    refused("config nested 100,000 deep", text(b'{"a":' * 100_000), CODE),
    refused("config of 20 MB", text(b'{"a": "' + b"x" * (20 << 20) + b'"}'), CODE),
    refused("config in UTF-16", text('{"vocab_size": 1}'.encode("utf-16")), CODE),
    refused("config of no object", text(b"[]"), CODE),
    refused("config that links outside", linked, CODE),
    refused("config that is a pipe", fifo, CODE),
    refused("end tokens beyond the vocabulary", generation, CODE),
]

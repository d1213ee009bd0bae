"""docs/adapters.md states the rules and limits that hold."""

from __future__ import annotations

import re
from pathlib import Path

from fam_engine.jobs.verifying.tolerances import TOLERANCES
from fam_engine.model.adapter_consumers import _VLLM_REFUSES, VLLM_RANKS

PAGE = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text(encoding="utf-8")
SPOKEN = {
    "use_dora": "DoRA",
    "lora_bias": "`lora_bias`",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "`layer_replication`",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
}


def test_the_tolerances_are_those_that_hold() -> None:
    table = PAGE.split("| what lies between the two |")[1].split("\n\n")[0]
    rows = [tuple(map(float, row)) for row in re.findall(r"\| ([\d.]+) \| ([\d.]+) \|", table)]
    assert rows == [(one.mean_abs, one.answer_max_abs) for one in TOLERANCES.values()]


def test_the_rules_of_vllm_are_those_that_hold() -> None:
    (row,) = re.findall(r"^\| vLLM \|.*$", PAGE, re.M)
    assert SPOKEN.keys() == set(_VLLM_REFUSES)
    assert all(name in row for name in SPOKEN.values())
    *ranks, last = map(str, VLLM_RANKS)
    assert f"({', '.join(ranks)} or {last}; 16 unless given)" in row

"""docs/serving.md lists every parameter, and docs/lm-eval.md every model argument."""

from __future__ import annotations

import re
from pathlib import Path

from fam_engine.serving.protocol import CompletionRequest, ScoreRequest
from fam_engine.serving.served import Limits

DOCS = Path(__file__).parents[2] / "docs"


def first_column(page: str, heading: str) -> set[str]:
    """Give the names in the first column of the table with this heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text.split(f"| {heading} |")[1].split("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.M))


def test_every_parameter_is_there_and_none_else() -> None:
    for path, kind in (("completions", CompletionRequest), ("score", ScoreRequest)):
        heading = f"parameter of `/v1/{path}`"
        assert first_column("serving.md", heading) == set(kind.model_fields)


def test_the_limits_are_those_that_hold() -> None:
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    limits = Limits()
    assert f"{limits.max_prompts:,} prompts" in page
    assert f"{limits.max_request_tokens:,} tokens" in page
    assert f"({limits.max_requests})" in page
    assert f"over {limits.max_body_bytes >> 20} MiB" in page


def test_every_model_argument_is_there_and_none_else() -> None:
    import pytest

    pytest.importorskip("lm_eval", reason="needs the package `lm-eval`")
    from fam_engine.integrations.lm_eval import _OPTIONS

    assert first_column("lm-eval.md", "argument") == set(_OPTIONS)

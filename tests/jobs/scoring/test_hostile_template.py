"""A chat template that hangs, fills the memory or dies at some records takes no job down: it costs these records."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fam_engine.config import ScoreConfig
from fam_engine.data import rendering
from fam_engine.data.children import JsonChild
from fam_engine.data.rendering import Renderer
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring.job import run_score

# Endless in C, where no signal of Python's is heard: two lists of two lists of two lists ... are compared. More memory
# than there is. More of them in tests/data.
FAULTS = {
    "compare": (
        "{% set two = namespace(a=0, b=0) %}{% for _ in range(60) %}"
        "{% set two.a = [two.a, two.a] %}{% set two.b = [two.b, two.b] %}{% endfor %}"
        "{{ two.a == two.b }}"
    ),
    "memory": "{{ (m.content * 9999999) * 9999 }}",
}
TEMPLATE = (
    "{% for m in messages %}"
    + "".join(
        f"{{% if m.content == '{name}' %}}{text}{{% endif %}}" for name, text in FAULTS.items()
    )
    # What no compiled shape can render, so that the template itself has to.
    + "{{ m.content | upper }}\n{% endfor %}"
)
DIES = "dies"


def score(model: Path, folder: Path, prompts: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """Score a record a prompt; give the quarantine by line, and the table's rows."""
    data, out = folder / f"{len(prompts)}.jsonl", folder / str(len(prompts))
    rows = ({"id": prompt, "prompt": prompt, "response": "one two"} for prompt in prompts)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": str(model), "data": (str(data),), "out": out, "device": "cpu"}
    run_score(ScoreConfig(**settings, template=str(folder / "hostile.jinja")), Nobody())
    lines = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    table = pq.read_table(out / "scores.parquet").drop_columns(["file", "line", "source"])
    return {line["line"]: line for line in lines}, table.to_pylist()


def test_it_costs_the_records_it_fails_at(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_SECONDS_A_REQUEST", 1)
    ask = Renderer._ask

    def dying(self: Renderer, request: dict[str, Any]) -> Any:  # noqa: ANN401
        if any(one["messages"][0]["content"] == DIES for one in request.get("render", ())):
            self._child._process.kill()
        return ask(self, request)

    monkeypatch.setattr(Renderer, "_ask", dying)
    codes, close = [], JsonChild.close
    monkeypatch.setattr(JsonChild, "close", lambda child: codes.append(close(child)))
    (tmp_path / "hostile.jinja").write_text(TEMPLATE)
    bad = [*FAULTS, DIES]
    prompts = ["a", *(word for name in bad for word in (name, f"after {name}"))]
    quarantine, rows = score(tiny_model, tmp_path, prompts)
    assert {prompts[line - 1] for line in quarantine} == set(bad)
    assert {row["code"] for row in quarantine.values()} == {"E_TEMPLATE", "E_TEMPLATE_LIMIT"}
    good = [prompt for prompt in prompts if prompt not in bad]
    assert (
        -signal.SIGXCPU in codes
    )  # by the kernel's clock of computing, long before patience is over
    assert score(tiny_model, tmp_path, good) == ({}, rows)

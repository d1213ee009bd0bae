"""One object shared by threads: their calls take turns, and give the bits of calls that were alone.

What calls share is held until another thread has come by: without turns every one of these fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from fam_engine import Evaluator, Generator, Sampling, Scorer
from fam_engine.data import rendering
from fam_engine.data.children import JsonChild
from fam_engine.integrations.trl import FamiliarityReward
from fam_engine.jobs.evaluation import evaluator
from fam_engine.jobs.scoring import lazy_scorer
from fam_engine.model.products import Scratch
from fam_engine.model.weights import Linear

RECORDS = [{"prompt": f"{n} + 3?", "response": f"{n + 3}, of course."} for n in range(8)]
# What a test of lengths renders has no compiled form: the child is asked for each record.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.content|length > 3 %}!{% endif %}{% endfor %}"
)
Given = TypeVar("Given")
Made = TypeVar("Made")


def in_threads(work: Callable[[Given], Made], given: list[Given]) -> list[Made]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, given))


@pytest.fixture
def template(tmp_path: Path) -> str:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    return str(file)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others run between the making of a matrix and its product, and between a question to the child and its answer."""
    dense, ask = Scratch.dense, JsonChild.ask

    def slow_dense(self: Scratch, linear: Linear) -> torch.Tensor:
        matrix = dense(self, linear)
        time.sleep(0.002)
        return matrix

    def slow_ask(self: JsonChild, request: dict[str, Any], seconds: float) -> Any:  # noqa: ANN401
        time.sleep(0.002)
        return ask(self, request, seconds)

    monkeypatch.setattr(Scratch, "dense", slow_dense)
    monkeypatch.setattr(JsonChild, "ask", slow_ask)
    # An answer that another thread took is not waited for.
    monkeypatch.setattr(rendering, "_PATIENCE_SECONDS", 5.0)


@pytest.mark.usefixtures("slow")
def test_threads_score_the_bits_of_one(tiny_model: Path, template: str) -> None:
    with Scorer(tiny_model, precision="nf4", device="cpu", template=template) as scorer:

        def scores(record: dict[str, str]) -> list[Any]:
            tables = (scorer.score([record]), scorer.score_each([record]))
            logprobs = scorer.token_logprobs(**record).tolist()
            return [*(table["nll_sum"].to_pylist() for table in tables), logprobs]

        alone = [scores(record) for record in RECORDS]
        assert in_threads(scores, RECORDS) == alone


@pytest.mark.usefixtures("slow")
def test_threads_generate_the_texts_of_one(tiny_model: Path, template: str) -> None:
    with Generator(tiny_model, precision="nf4", device="cpu", template=template) as generator:

        def texts(record: dict[str, str]) -> list[dict[str, Any]]:
            return generator.generate([record], Sampling(max_new_tokens=6))

        alone = [texts(record) for record in RECORDS]
        assert in_threads(texts, RECORDS) == alone


@pytest.mark.usefixtures("slow")
def test_threads_share_a_reward_whose_model_is_loaded_once(
    tiny_model: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[dict[str, Any]] = []

    def load(**settings: Any) -> Scorer:  # noqa: ANN401 - any setting
        loads.append(settings)
        time.sleep(0.1)
        return Scorer(**settings)

    monkeypatch.setattr(lazy_scorer, "Scorer", load)

    def rewards(reward: FamiliarityReward, record: dict[str, str]) -> list[float]:
        return reward([record["prompt"]], [record["response"]])

    shared, own = (FamiliarityReward(tiny_model, device="cpu", template=template) for _ in "ab")
    together = in_threads(lambda record: rewards(shared, record), RECORDS)
    assert len(loads) == 1
    assert together == [rewards(own, record) for record in RECORDS]


def test_threads_evaluate_one_after_the_other(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(*_: object, **__: object) -> None:
        seen.append("begins")
        time.sleep(0.05)
        seen.append("ends")

    monkeypatch.setattr(evaluator, "run_eval", run)
    shared = Evaluator(tiny_model, precision="fp32", device="cpu")
    in_threads(lambda name: shared.evaluate(RECORDS, tmp_path / name), ["a", "b", "c"])
    assert seen == ["begins", "ends"] * 3


def test_records_may_be_made_by_what_asks_the_same_model(tiny_model: Path) -> None:
    """A turn that began before the records were read would wait for itself."""
    with (
        Scorer(tiny_model, precision="fp32", device="cpu") as scorer,
        Generator(tiny_model, precision="fp32", device="cpu") as generator,
    ):
        found: list[int] = []

        def ask() -> None:
            few = Sampling(max_new_tokens=2)
            found.append(scorer.score(r for r in RECORDS if scorer.score([r]).num_rows).num_rows)
            asked = (r for r in RECORDS if generator.generate([r], few) is not None)
            found.append(len(generator.generate(asked, few)))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(120)
        assert found[:1] == [8]
        assert len(found) == 2

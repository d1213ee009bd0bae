"""Our filter in datatrove's own pipelines."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="needs the package `datatrove`")
pytestmark = pytest.mark.filterwarnings("default")  # datatrove is not free of warnings

from datatrove.data import Document  # noqa: E402
from datatrove.executor import LocalPipelineExecutor  # noqa: E402
from datatrove.pipeline.readers import JsonlReader  # noqa: E402
from datatrove.pipeline.writers import JsonlWriter  # noqa: E402

from fam_engine.errors import UsageError  # noqa: E402
from fam_engine.integrations.datatrove import PerplexityFilter  # noqa: E402
from fam_engine.jobs.scoring.scorer import Scorer  # noqa: E402

TEXTS = ["two", "three", "seven hundred", "zzzz", "\u00e9\u00e9", "x" * 300]


@pytest.fixture(scope="module")
def perplexities(bos_model: Path) -> list[float]:
    with Scorer(bos_model, precision="fp32", device="cpu", template="none") as scorer:
        records = [{"prompt": "", "response": text} for text in TEXTS[:-1]]
        return scorer.score(records)["perplexity"].to_pylist()


def test_it_keeps_the_band_and_says_why_the_rest_went(
    bos_model: Path, perplexities: list[float]
) -> None:
    low, high = sorted(perplexities)[1], sorted(perplexities)[-2]
    step = PerplexityFilter(bos_model, low=low, high=high, precision="fp32", device="cpu")
    docs = [Document(text, str(index)) for index, text in enumerate(TEXTS)]
    docs.append(Document("", "empty"))
    verdicts = step.filter_batch(docs)
    expected = [
        (False, "perplexity_below")
        if p < low
        else (False, "perplexity_above")
        if p > high
        else True
        for p in perplexities
    ]
    assert sum(verdict is True for verdict in expected) == 3
    assert verdicts == [*expected, (False, "E_TOO_LONG"), (False, "E_EMPTY_RESPONSE")]
    assert [doc.metadata["perplexity"] for doc in docs[:-2]] == perplexities
    assert step.filter(docs[0]) == verdicts[0]


def test_a_prompt_in_the_metadata_counts(bos_model: Path, perplexities: list[float]) -> None:
    step = PerplexityFilter(bos_model, precision="fp32", device="cpu")
    doc = Document("two", "0", metadata={"prompt": "one, "})
    assert step.filter(doc) is True
    assert doc.metadata["perplexity"] != perplexities[0]


def test_a_prompt_that_is_no_text_drops_its_document_alone(bos_model: Path) -> None:
    step = PerplexityFilter(bos_model, precision="fp32", device="cpu")
    docs = [Document("two", "0", metadata={"prompt": b"one"}), Document("two", "1")]
    assert step.filter_batch(docs) == [(False, "E_RECORDS"), True]


def test_a_band_that_holds_nothing_is_refused(bos_model: Path) -> None:
    for low, high in ((3.0, 2.0), (float("nan"), 2.0)):
        with pytest.raises(UsageError, match="expected low <= high"):
            PerplexityFilter(bos_model, low=low, high=high)


def test_a_pipeline_of_two_tasks(
    bos_model: Path, perplexities: list[float], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for task in range(2):
        rows = [{"text": text, "id": f"{task}-{i}"} for i, text in enumerate(TEXTS)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "in" / f"{task}.jsonl").write_text(lines)
    high = sorted(perplexities)[2]
    dropped = JsonlWriter(str(tmp_path / "dropped"), compression=None)
    step = PerplexityFilter(
        bos_model, high=high, precision="fp32", device="cpu", exclusion_writer=dropped, batch_size=4
    )
    assert len(pickle.dumps(step)) < 20_000
    reader = JsonlReader(str(tmp_path / "in"))
    pipeline = [reader, step, JsonlWriter(str(tmp_path / "kept"), compression=None)]
    logs = str(tmp_path / "logs")
    LocalPipelineExecutor(pipeline, tasks=2, workers=2, logging_dir=logs).run()

    def read(folder: str) -> list[dict[str, object]]:
        files = sorted((tmp_path / folder).glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    kept = [index for index, p in enumerate(perplexities) if p <= high]
    assert [row["id"] for row in read("kept")] == [f"{t}-{i}" for t in range(2) for i in kept]
    assert len(read("dropped")) == 2 * (len(TEXTS) - len(kept))

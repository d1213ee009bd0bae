"""Records without finite log-probs: left out, with a reason that is theirs alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.jobs.scoring import job
from fam_engine.model.decoder import Decoder
from tests.jobs.scoring.test_job import make_records, score, write

REASON = (
    "the model gives no finite log-prob: the embedding gives it first, its weights are not finite"
)


@pytest.fixture
def sick_letter(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a letter whose embedding is no number."""
    vocab = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    whole = job.open_model

    def sick(*arguments: Any) -> Decoder:  # noqa: ANN401
        decoder = whole(*arguments)
        embed_VD = decoder.weights.embed_VD.clone()
        embed_VD[vocab["q"]] = torch.nan
        return Decoder(
            decoder.config,
            replace(decoder.weights, embed_VD=embed_VD),
            precision=decoder.precision,
            compute_dtype=decoder.compute_dtype,
            device=decoder.device,
        )

    monkeypatch.setattr(job, "open_model", sick)
    return "q"


def test_the_reason_is_the_same_whatever_the_batches(
    tiny_model: Path, tmp_path: Path, sick_letter: str
) -> None:
    records = make_records(16)
    assert not any(sick_letter in record["prompt"] + record["response"] for record in records)
    records.insert(5, {**records[4], "id": "sibling", "response": f"a {sick_letter} b"})
    records.insert(9, {**records[4], "id": "prompt", "prompt": f"{sick_letter}?\n"})
    data = write(tmp_path / "data.jsonl", records)
    found = []
    for budget in (64, 256, 4096):
        outcome = score(tiny_model, data, tmp_path / str(budget), max_tokens_per_batch=budget)
        assert outcome.summary["records"]["quarantined_by_code"] == {"E_NONFINITE": 2}
        found.append((tmp_path / str(budget) / "quarantine.jsonl").read_bytes())
    assert found[0] == found[1] == found[2]
    lines = [json.loads(line) for line in found[0].decode().splitlines()]
    assert [(line["line"], line["reason"]) for line in lines] == [(6, REASON), (10, REASON)]

"""The verification over a tiny model, whose adapter is large enough to show."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from fam_engine.config import Precision, ScoreConfig, VerifyConfig
from fam_engine.errors import InputError, ModelRefusedError
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.verifying import tolerances, ways
from fam_engine.jobs.verifying.job import run_verify
from fam_engine.jobs.verifying.probe import Probe
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.loading import load_model
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import TrainableModel
from tests.jobs.training.small_job import Notes, make_records, write_records
from tests.model.test_merging import quantized

SPEC = LoraSpec(4, 16.0, 0.0, ("q_proj", "v_proj", "down_proj"), False)


def make_adapter(model: Path, folder: Path, *, scale: float = 0.15, seed: int = 0) -> Path:
    """Save an adapter whose B is random instead of 0."""
    folder.mkdir()
    trainable = TrainableModel(load_model(model, precision="fp32"), SPEC, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.randn(tensor.shape, generator=generator) * scale
        for name, tensor in trainable.parameters.items()
    }
    save_adapter(
        folder, SPEC, parameters, base_model_name_or_path=str(model), base_fingerprint=None
    )
    return folder


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_records(tmp_path / "probe.jsonl", make_records(20))


def verify(model: Path, adapter: Path, data: Path, **settings: object) -> dict[str, Any]:
    config = VerifyConfig(
        model=str(model), verify=adapter, data=(str(data),), device="cpu", **settings
    )
    return run_verify(config, Notes()).summary


def by_name(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in summary["ways"]}


def test_every_way_is_compared_with_the_one_of_the_training(
    tiny_model: Path, adapter: Path, data: Path
) -> None:
    summary = verify(tiny_model, adapter, data, compute_dtype="fp32")
    rows = by_name(summary)
    assert list(rows) == [
        "nf4 + adapter",
        "nf4 alone",
        "bf16 + adapter",
        "bf16 alone",
        "merged original",
        "merged dequantized",
    ]
    assert summary["reference"] == "nf4 + adapter"
    assert rows["nf4 + adapter"]["max_abs"] == 0
    # Merged into what the adapter was trained on, little is lost; over 16-bit weights, NF4's errors.
    assert rows["merged dequantized"]["mean_abs"] < 0.2 * rows["merged original"]["mean_abs"]
    assert rows["bf16 + adapter"]["mean_abs"] == pytest.approx(
        rows["merged original"]["mean_abs"], rel=0.2
    )
    assert rows["nf4 alone"]["is_within"] is None
    assert rows["merged dequantized"]["is_within"] is True
    assert rows["merged dequantized"]["tolerance"]["mean_abs"] == 0.03
    assert rows["bf16 + adapter"]["tolerance"]["mean_abs"] == 0.15
    assert summary["records"] == {
        "read": 20,
        "compared": 20,
        "tokens": sum(len(one["response"]) for one in make_records(20)),
        "left_out": 0,
        "left_out_by_code": {},
    }


@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_the_figures_are_those_of_score_to_the_bit(
    tiny_model: Path, adapter: Path, data: Path, tmp_path: Path, precision: Precision
) -> None:
    summary = verify(tiny_model, adapter, data, precision=precision)
    settings = {"model": str(tiny_model), "data": (str(data),), "precision": precision}
    out = tmp_path / "scores"
    config = ScoreConfig(**settings, adapter=adapter, out=out, device="cpu")  # type: ignore[arg-type]
    run_score(config, Notes())
    scores = pq.read_table(out / "scores.parquet").to_pydict()
    assert [one["id"] for one in summary["answers"]] == scores["id"]
    found = [one["nll_mean"][f"{precision} + adapter"] for one in summary["answers"]]
    assert found == pytest.approx(scores["nll_mean"], rel=1e-14)


def test_in_fp32_a_merge_costs_rounding_only(tiny_model: Path, adapter: Path, data: Path) -> None:
    summary = verify(tiny_model, adapter, data, precision="fp32")
    rows = by_name(summary)
    assert list(rows) == ["fp32 + adapter", "fp32 alone", "merged original"]
    assert rows["merged original"]["max_abs"] < 1e-4
    assert rows["fp32 alone"]["mean_abs"] > 0.05
    assert summary["is_within"] is True


def test_another_adapter_merged_is_beyond_tolerance(
    tiny_model: Path, adapter: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_adapter(tiny_model, tmp_path / "other", seed=1)
    plan = ways.plan_merge
    monkeypatch.setattr(ways, "plan_merge", lambda model, _, *, base: plan(model, other, base=base))
    summary = verify(tiny_model, adapter, data, precision="fp32")
    row = by_name(summary)["merged original"]
    assert summary["is_within"] is row["is_within"] is False
    assert row["reordered"] > 0
    assert row["rank_correlation"] < 1


def test_either_limit_can_be_broken() -> None:
    limit = tolerances.Tolerance(mean_abs=0.1, answer_max_abs=0.5)
    for mean, answer, holds in ((0.1, 0.5, True), (0.11, 0.5, False), (0.1, 0.51, False)):
        assert limit.holds({"mean_abs": mean, "answer_max_abs": answer}) is holds


def test_a_model_stored_in_nf4_has_no_16_bit_weights(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    stored = quantized(tiny_model, tmp_path / "nf4")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, stored)
    rows = by_name(verify(stored, make_adapter(tiny_model, tmp_path / "adapter"), data))
    assert list(rows) == ["nf4 + adapter", "nf4 alone", "merged dequantized"]


def test_bad_records_are_left_out_and_counted(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    records = [*make_records(3), {"prompt": "a", "response": ""}]
    records.append({"prompt": "long", "response": "x" * 400})
    data = write_records(tmp_path / "data.jsonl", records)
    config = VerifyConfig(
        model=str(tiny_model), verify=adapter, data=(str(data),), precision="fp32", device="cpu"
    )
    outcome = run_verify(config, Notes())
    assert outcome.num_quarantined == 2
    assert outcome.summary["records"]["left_out_by_code"].keys() == {
        "E_EMPTY_RESPONSE",
        "E_TOO_LONG",
    }
    assert outcome.summary["records"]["compared"] == 3


def test_what_is_not_there_is_named_before_any_work(
    tiny_model: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefusedError, match="E_ADAPTER_NOT_FOUND"):
        verify(tiny_model, tmp_path / "no", data)
    with pytest.raises(InputError, match="does not exist"):
        verify(tiny_model, adapter, tmp_path / "no.jsonl")


def test_an_answer_without_a_finite_logprob_is_named() -> None:
    probe = Probe(["a", "b"], ["", ""], {}, None, None, torch.tensor([1, 2]).numpy())  # type: ignore[arg-type]
    rows = [(torch.zeros(n).numpy(), torch.zeros(n, dtype=torch.bool).numpy()) for n in (1, 2)]
    rows[1][0][1] = -math.inf
    with pytest.raises(InputError, match="`b`"):
        probe.gathered(rows)

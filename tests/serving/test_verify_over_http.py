"""`export --verify` against our own server: what is served is found out, whatever the server says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import Precision, VerifyConfig
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.resident import ResidentModel
from fam_engine.jobs.verifying.job import run_verify
from tests.jobs.training.small_job import Notes, make_records, write_records
from tests.jobs.verifying.test_verify import make_adapter
from tests.serving.conftest import NAME, listening, make_service


@pytest.fixture
def settings(bos_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_records(tmp_path / "probe.jsonl", make_records(8))
    adapter = make_adapter(bos_model, tmp_path / "adapter")
    asked = {"model": str(bos_model), "data": (str(data),), "device": "cpu"}
    return asked | {"verify": adapter, "compute_dtype": "fp32"}


def verified(
    settings: dict[str, Any],
    served: Path | None,
    precision: Precision,
    *,
    max_length: int | None = None,
    **others: object,
) -> dict[str, Any]:
    """Verify against a server of the same model with another adapter, or none."""
    folder = settings["model"]
    with (
        ResidentModel(
            folder,
            adapter=served,
            precision=precision,
            compute_dtype="fp32",
            device="cpu",
            max_length=max_length,
        ) as model,
        listening(make_service(model)) as address,
    ):
        config = VerifyConfig(**settings, url=address, **others)
        return run_verify(config, Notes()).summary


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_a_server_is_known_by_what_it_says(settings: dict[str, Any], precision: Precision) -> None:
    summary = verified(settings, settings["verify"], precision)
    server = summary["server"]
    assert server["model"] == NAME
    assert server["closest"] == f"{precision} + adapter"
    # The same weights and tokens; a prompt with `echo` is computed in one piece, which rounds otherwise.
    assert server["max_abs"] <= 1e-4
    assert server["top1_agreement"] == 1.0
    assert server["is_within"] is True
    row = summary["ways"][-1]
    assert (row["name"], row["precision"]) == ("over HTTP", None)
    assert (row["mean_abs"] < 1e-4) is (precision == "nf4")


def test_a_server_without_the_adapter_is_found_out(settings: dict[str, Any]) -> None:
    summary = verified(settings, None, "bf16")
    assert summary["server"]["closest"] == "bf16 alone"
    assert summary["server"]["has_adapter"] is False
    assert summary["ways"][-1]["is_within"] is None
    assert summary["is_within"] is False


def test_an_adapter_that_changes_nothing_is_not_missed(
    settings: dict[str, Any], bos_model: Path, tmp_path: Path
) -> None:
    settings["verify"] = make_adapter(bos_model, tmp_path / "nothing", scale=0.0)
    summary = verified(settings, None, "bf16")
    assert summary["server"]["has_adapter"] is True
    assert summary["server"]["is_within"] is True


def test_another_adapter_is_beyond_tolerance(
    settings: dict[str, Any], bos_model: Path, tmp_path: Path
) -> None:
    other = make_adapter(bos_model, tmp_path / "other", seed=1)
    assert verified(settings, other, "bf16")["server"]["is_within"] is False


@pytest.mark.parametrize("max_length", [None, 64])
def test_what_leaves_a_server_no_room_to_write_is_left_out(
    settings: dict[str, Any], tmp_path: Path, max_length: int | None
) -> None:
    """A token a byte and BOS: with room for one more, without, and an answer shorter than any."""
    longest = max_length or 256
    records = [
        {"id": str(size), "prompt": "one\n", "response": "x" * (size - 5)}
        for size in (longest - 1, longest, 10)
    ]
    settings["data"] = (str(write_records(tmp_path / "long.jsonl", records)),)
    summary = verified(settings, settings["verify"], "bf16", max_length=max_length)
    assert [one["id"] for one in summary["answers"]] == [str(longest - 1), "10"]
    assert summary["records"]["left_out_by_code"] == {"E_TOO_LONG": 1}
    assert summary["records"]["read"] == 3
    assert summary["server"]["is_within"] is True


def test_a_server_too_small_for_every_record_is_told(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at most 7 in all, which the server takes"):
        verified(settings, settings["verify"], "bf16", max_length=8)


def test_a_model_it_does_not_have_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"no model `tuned`, expected one of {NAME}"):
        verified(settings, None, "bf16", served_model_name="tuned")

"""The published agreement table is the one its figures give, and its verdicts follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "agreement_cpu.json").read_text())


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import agreement

    return agreement


def test_the_page_shows_the_results(agreement: ModuleType, tmp_path: Path) -> None:
    page = ROOT / "docs" / "agreement.md"
    again = tmp_path / "page.md"
    again.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    agreement.replace_table(again, RESULTS)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_ours_agrees_everywhere_by_tolerances_that_still_hold(agreement: ModuleType) -> None:
    assert RESULTS["tolerances"] == agreement.TOLERANCES
    rows = [row for model in RESULTS["models"] for row in model["rows"]]
    for row in rows:
        if "absent" not in row:
            assert row["agrees"] == agreement.within(row, agreement.TOLERANCES[row["computed"]])
    ours = [row for row in rows if "fam-engine" in row["tool"] or "serve" in row["tool"]]
    assert len(ours) == 7 * len(RESULTS["models"])
    assert all(row["agrees"] for row in ours)


def test_distances_are_nats_a_token(agreement: ModuleType) -> None:
    examples = [agreement.Example("", [0], [1, 2]), agreement.Example("", [0], [3])]
    truth = agreement.Answer([-3.0, -1.0], [np.array([-1.0, -2.0]), np.array([-1.0])])
    found: dict[str, Any] = agreement.distance(
        agreement.Answer(
            [-3.5, -1.0], [np.array([-1.25, -2.25]), np.array([-1.0])], [[0, 1, 2], []]
        ),
        truth,
        examples,
    )
    assert found["record_largest"] == found["token_largest"] == 0.25
    assert found["token_mean"] == pytest.approx(0.5 / 3)
    assert found["records_with_same_ids"] == 1
    assert agreement.within(found, {"record": 0.25})
    assert not agreement.within(found, {"token": 0.2, "record": 0.25})
    sums = agreement.distance(agreement.Answer([-3.5, -1.0], own_ids=[[], []]), truth, examples)
    assert "token_largest" not in sums
    assert not agreement.within(sums, {"token": 1.0, "record": 0.2})

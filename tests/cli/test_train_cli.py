from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fam_engine.cli import merge, train
from fam_engine.config import MergeConfig, TrainConfig
from tests.cli.conftest import Run

GOOD = "".join(
    json.dumps({"prompt": f"question {n}\n", "response": f"the answer {n % 3}"}) + "\n"
    for n in range(6)
)


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD)
    return {
        "--model": str(tiny_model),
        "--data": str(data),
        "--out": str(tmp_path / "out"),
        "--steps": "2",
        "--rank": "2",
        "--precision": "fp32",
    }


def words(arguments: dict[str, str]) -> list[str]:
    return [word for pair in arguments.items() for word in pair]


def test_an_adapter_is_trained_scored_and_merged(
    run: Run, arguments: dict[str, str], tmp_path: Path
) -> None:
    code, printed, _ = run("train", *words(arguments), "--learning-rate", "0.02", "--quiet")
    assert code == 0
    assert "2 steps" in printed
    assert "perplexity of the answers trained on" in printed
    adapter = tmp_path / "out" / "adapter"
    model, data = arguments["--model"], arguments["--data"]
    common = ("--model", model, "--adapter", adapter, "--data", data, "--precision", "fp32")
    code, printed, _ = run("score", *common, "--out", tmp_path / "scores", "--quiet", "--json")
    adapted = json.loads(printed)["overall"]["perplexity"]["token_weighted"]["value"]
    code, printed, _ = run("merge", *common, "--out", tmp_path / "merged", "--quiet", "--json")
    assert code == 0
    alone, same, merged = (
        row["perplexity"]["token_weighted"]["value"] for row in json.loads(printed)["scores"]
    )
    assert same == adapted < alone
    assert merged == pytest.approx(adapted, rel=1e-4)
    code, printed, _ = run("merge", *common, "--out", tmp_path / "again", "--quiet")
    assert code == 0
    assert "model and adapter" in printed


def test_a_dry_run_shows_what_is_learnt(run: Run, arguments: dict[str, str]) -> None:
    code, printed, _ = run("train", *words(arguments), "--dry-run", "--quiet")
    assert code == 0
    assert "question 0\n[[the answer 0</s>]]" in printed
    assert "6 examples to train on" in printed
    assert "2 steps" in printed
    assert not Path(arguments["--out"]).exists()
    code, printed, _ = run("train", *words(arguments), "--dry-run", "--json")
    assert json.loads(printed)["shown"][0]["supervised"] == [*"the answer 0", "</s>"]


def test_quarantined_records_end_in_exit_code_3(run: Run, arguments: dict[str, str]) -> None:
    Path(arguments["--data"]).write_text(GOOD + "not json\n")
    code, printed, _ = run("train", *words(arguments), "--quiet")
    assert code == 3
    assert "E_JSON_SYNTAX" in printed


@pytest.mark.parametrize(
    ("change", "code", "starts", "named"),
    [
        ({"--model": "nowhere"}, 10, "error[E_MODEL_NOT_FOUND]", "`nowhere`"),
        ({"--data": "nowhere.jsonl"}, 4, "error[E_INPUT_FILE] nowhere.jsonl", "does not exist"),
        ({"--loss": "stmm"}, 2, "error[E_CONFIG_VALUE]", "'stm'"),
        ({"--epochs": "2"}, 2, "error[E_CONFIG_VALUE]", "give either this or `epochs`"),
        ({"--patience": "2"}, 2, "error[E_CONFIG_VALUE]", "needs `validation`"),
        ({"--validation": "nowhere.jsonl"}, 4, "error[E_INPUT_FILE]", "does not exist"),
        ({"--target-modules": "q_proj,query"}, 2, "error[E_LORA]", "`query`"),
        ({"--dropout": "1"}, 2, "error[E_CONFIG_VALUE]", "dropout"),
        ({"--out": "/dev/null/x"}, 5, "error[E_STORAGE]", "cannot be written"),
        ({"--learning-rate": "1e30", "--steps": "9"}, 9, "error[E_DIVERGED] step", "expected"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run,
    arguments: dict[str, str],
    change: dict[str, str],
    code: int,
    starts: str,
    named: str,
) -> None:
    found, _, err = run("train", *words(arguments | change), "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_settings_may_come_from_a_file(run: Run, arguments: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("target-modules: [q_proj, v_proj]\nrslora: true\nsteps: 9\n")
    code, _, _ = run("train", *words(arguments), "--config", file, "--quiet")
    assert code == 0
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["use_rslora"] is True
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["training"]["steps"] == 2


@pytest.mark.parametrize(
    ("command", "settings"), [(train.run, TrainConfig), (merge.run, MergeConfig)]
)
def test_the_flags_are_the_settings_and_no_others(
    command: Callable[..., None], settings: type[TrainConfig | MergeConfig]
) -> None:
    flags = {name.rstrip("_") for name in inspect.signature(command).parameters}
    assert flags - set(settings.model_fields) == {"config", "dry_run", "as_json", "quiet"}
    assert set(settings.model_fields) <= flags


def test_a_threshold_of_another_loss_is_refused(run: Run, arguments: dict[str, str]) -> None:
    code, _, err = run("train", *words(arguments), "--max-token-perplexity", "3")
    assert code == 2
    assert "`max_token_perplexity`: is the threshold of `loss` stm and soft, this is plain" in err
    code, _, err = run("train", *words(arguments), "--loss", "stm", "--min-excess", "-2")
    assert code == 2
    assert "`min_excess`: is the threshold of `loss` excess, this is stm" in err
    given = ("--loss", "soft", "--max-token-perplexity", "3", "--dry-run", "--quiet")
    assert run("train", *words(arguments), *given)[0] == 0

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import Run

GOOD = '{"prompt": "one\\n", "response": "two"}\n{"prompt": "one\\n", "response": "three"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(GOOD)
    return file


def test_a_job_prints_a_table_and_leaves_its_files(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, _ = run("score", "--model", tiny_model, "--data", data, "--out", out, "--quiet")
    assert code == 0
    assert "data" in printed
    assert "report.html" in printed
    assert pq.read_table(out / "scores.parquet").num_rows == 2
    assert json.loads((out / "summary.json").read_text())["records"]["scored"] == 2
    assert "<html" in (out / "report.html").read_text()


def test_json_is_all_of_standard_output(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("score", "--model", tiny_model, "--data", data, "--out", tmp_path / "out")
    code, printed, _ = run(*arguments, "--json", "--dry-run")
    assert code == 0
    assert json.loads(printed)["num_records"] == 2
    code, printed, _ = run(*arguments, "--json")
    assert json.loads(printed)["records"]["scored"] == 2


def test_shards_say_how_far_they_are_and_the_command_without_one_ends_the_job(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("score", "--model", tiny_model, "--data", data, "--out", out, "--quiet")
    code, printed, _ = run(*command, "--shard", "2/2")
    assert code == 0
    assert "shard 2/2: all of its 0 parts are done; 0 of 1 of the job" in printed
    assert "without --shard ends it" in printed
    code, printed, _ = run(*command, "--shard", "1/2", "--json")
    assert json.loads(printed) == {"shard": "1/2", "shard_parts": 1, "parts": 1, "done": 1}
    assert not (out / "scores.parquet").exists()
    code, printed, _ = run(*command)
    assert code == 0
    assert "report.html" in printed
    assert pq.read_table(out / "scores.parquet").num_rows == 2


def test_several_files_follow_one_flag(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(GOOD)
    out = tmp_path / "out"
    code, _, _ = run("score", "--data", data, other, "--model", tiny_model, "--out", out, "--quiet")
    assert code == 0
    assert pq.read_table(out / "scores.parquet")["source"].to_pylist() == [
        *["data"] * 2,
        *["other"] * 2,
    ]


def test_quarantined_records_end_in_exit_code_3(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    data.write_text(GOOD + "not json\n")
    code, printed, _ = run(
        "score", "--model", tiny_model, "--data", data, "--out", tmp_path / "o", "--quiet"
    )
    assert code == 3
    assert "E_JSON_SYNTAX" in printed


@pytest.mark.parametrize(
    ("change", "code", "starts", "named"),
    [
        ({"--model": "nowhere"}, 10, "error[E_MODEL_NOT_FOUND]", "`nowhere`"),
        ({"--adapter": "nowhere"}, 10, "error[E_ADAPTER_NOT_FOUND] nowhere", "not a folder"),
        ({"--data": "nowhere.jsonl"}, 4, "error[E_INPUT_FILE] nowhere.jsonl", "does not exist"),
        ({"--precision": "int8"}, 2, "error[E_CONFIG_VALUE]", "'nf4', 'bf16' or 'fp32'"),
        ({"--map": "response"}, 2, "error[E_USAGE]", "field=column"),
        ({"--map": "respnse=a"}, 2, "error[E_CONFIG_VALUE]", "did you mean `response`"),
        ({"--map": "zzz=a"}, 2, "error[E_CONFIG_VALUE]", "expected prompt, response, completion"),
        ({"--device": "cuda"}, 8, "error[E_DEVICE]", "--device cpu"),
        ({"--config": "nowhere.yaml"}, 2, "error[E_CONFIG_FILE] nowhere.yaml", "cannot be read"),
        ({"--shard": "5/4"}, 2, "error[E_CONFIG_VALUE]", "1 <= I <= N, given '5/4'"),
        ({"--launcher": "slurm"}, 2, "error[E_CONFIG_VALUE]", "'local' or 'ray'"),
        ({"--workers": "2"}, 2, "error[E_CONFIG_VALUE]", "needs `launcher`"),
        ({"--out": "/dev/null/x"}, 5, "error[E_STORAGE]", "cannot be written"),
        ({"--chat-template-kwargs": "[1]"}, 2, "error[E_USAGE]", "expected a JSON object, such as"),
        ({"--chat-template-kwargs": "a=1"}, 2, "error[E_USAGE]", "kwargs a=1: expected a JSON"),
        ({"--chat-template-kwargs": '{"a": 1}'}, 2, "error[E_TEMPLATE_KWARGS]", "no chat template"),
        ({"--template": "nowhere"}, 2, "error[E_TEMPLATE_FILE] nowhere", "cannot be read"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    change: dict[str, str],
    code: int,
    starts: str,
    named: str,
) -> None:
    import torch

    if "--device" in change and torch.cuda.is_available():
        pytest.skip("this machine has the device the test wants to be without")
    flags = {"--model": str(tiny_model), "--data": str(data), "--out": str(tmp_path / "out")}
    flags |= change
    found, _, err = run("score", *(word for pair in flags.items() for word in pair), "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_two_columns_for_one_field_are_refused(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    flags = ["--model", tiny_model, "--data", data, "--out", tmp_path / "out"]
    found, _, err = run("score", *flags, "--map", "response=a", "--map", "response=b")
    assert found == 2
    assert err.startswith("error[E_USAGE]: --map response=a and --map response=b: expected one")


def test_a_pickle_checkpoint_is_refused(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((tiny_model / name).read_bytes())
    (model / "pytorch_model.bin").write_bytes(b"")
    code, _, err = run(
        "score", "--model", model, "--data", data, "--out", tmp_path / "o", "--quiet"
    )
    assert code == 10
    assert "safetensors" in err
    assert err.count("\n") == 1


def copied(model: Path, folder: Path, **changes: object) -> Path:
    """Copy a model's folder with other values in its configuration."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "mamba"),
        ({"num_hidden_layers": 3}, "model.layers.2."),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_by_name(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    model = copied(tiny_model, tmp_path / "model", **changes)
    out = tmp_path / "out"
    code, _, err = run("score", "--model", model, "--data", data, "--out", out, "--quiet")
    assert code == 10
    assert named in err
    assert err.count("\n") == 1


def test_a_bug_is_one_line_that_asks_for_a_report(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.jobs.scoring import job

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(job, "run_score", broken)
    arguments = ("score", "--model", tiny_model, "--data", data, "--out", tmp_path / "o", "--quiet")
    code, _, err = run(*arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert "ZeroDivisionError" in err
    with pytest.raises(ZeroDivisionError):
        run(*arguments, "--debug")


def test_version(run: Run) -> None:
    code, printed, _ = run("--version")
    assert code == 0
    assert printed.startswith("fam-engine 0.")


def test_the_flags_are_the_settings_and_no_others() -> None:
    # A new flag is a promise; this list changes only on purpose.
    import inspect

    from fam_engine.cli.score import run as command
    from fam_engine.config import ScoreConfig

    flags = {name.rstrip("_") for name in inspect.signature(command).parameters}
    assert flags - set(ScoreConfig.model_fields) == {"config", "dry_run", "as_json", "quiet"}
    assert set(ScoreConfig.model_fields) <= flags

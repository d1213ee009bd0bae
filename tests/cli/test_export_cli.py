from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fam_engine.cli import export
from fam_engine.config import VerifyConfig
from tests.cli.conftest import Run
from tests.jobs.verifying.test_verify import make_adapter

GOOD = '{"prompt": "one", "response": "two"}\n{"prompt": "one", "response": "three"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "selected.jsonl"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trl", "load_dataset("),
        ("axolotl", "  message_field_training: train"),
        ("llama-factory", '    "formatting": "sharegpt",'),
    ],
)
def test_it_prints_what_the_tool_must_be_told(
    run: Run, data: Path, tmp_path: Path, name: str, told: str
) -> None:
    out = tmp_path / "out.jsonl"
    code, printed, _ = run("export", data, "--format", name, "--out", out, "--quiet")
    assert code == 0
    assert printed.startswith("2 of 2 records exported\n")
    assert told in printed
    assert len(out.read_text().splitlines()) == 2


def test_records_left_out_end_in_exit_code_3(run: Run, data: Path, tmp_path: Path) -> None:
    data.write_text(GOOD + "not json\n" * 7)
    flags = ("--format", "trl", "--out", tmp_path / "out.jsonl", "--quiet")
    code, printed, _ = run("export", data, *flags)
    assert code == 3
    assert f"left out: {data}:3: E_JSON_SYNTAX: " in printed
    assert "left out: 2 more" in printed
    code, printed, _ = run("export", "--data", data, *flags, "--json")
    assert code == 3
    assert json.loads(printed)["records"]["left_out"] == 7


@pytest.mark.parametrize(
    ("flags", "code", "starts", "named"),
    [
        (("--format", "csv"), 2, "error[E_CONFIG_VALUE]", "'trl', 'axolotl' or 'llama-factory'"),
        (("--out", "out.txt"), 2, "error[E_CONFIG_VALUE]", "needs the ending .jsonl"),
        (("--data", "nowhere.jsonl"), 4, "error[E_INPUT_FILE] nowhere.jsonl", "does not exist"),
        (("--out", "/dev/null/out.jsonl"), 5, "error[E_STORAGE]", "cannot be written"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run, data: Path, tmp_path: Path, flags: tuple[str, ...], code: int, starts: str, named: str
) -> None:
    others = {"--format": "trl", "--out": str(tmp_path / "out.jsonl")}
    rest = [part for pair in others.items() if pair[0] not in flags for part in pair]
    found, _, err = run("export", data, *rest, *flags, "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter")


def test_an_adapter_is_verified(
    run: Run, tiny_model: Path, adapter: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--verify", adapter, "--model", tiny_model, "--precision", "fp32", "--quiet")
    code, printed, _ = run("export", data, *flags, "--json")
    assert code == 0
    summary = json.loads(printed)
    assert summary["is_within"] is True
    assert [one["id"] for one in summary["answers"]] == [f"{data}:1", f"{data}:2"]
    code, printed, _ = run("export", data, *flags)
    assert code == 0
    assert printed.startswith("2 answers, 8 tokens\n")
    assert "tolerated: size 0.001, worst answer 0.01 (merged original)" in printed
    assert max(map(len, printed.split("tolerated")[0].splitlines())) <= 80
    data.write_text(GOOD + "not json\n")
    assert run("export", data, *flags)[0] == 3
    from fam_engine.jobs.verifying import job, tolerances

    nothing = dict.fromkeys(("fp32", "bf16", "nf4"), tolerances.Tolerance(-1.0, -1.0))
    monkeypatch.setattr(job, "TOLERANCES", nothing)
    code, printed, _ = run("export", data, *flags)
    assert code == 1
    assert "BEYOND" in printed


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--verify", "a", "--format", "trl"), "export --verify takes no --format"),
        (("--format", "trl", "--url", "http://x"), "export without --verify takes no --url"),
        (("--verify", "a", "--model", "m", "--served-model-name", "n"), "needs `url`"),
        (("--verify", "a", "--model", "m", "--limit", "1001"), "`limit`"),
        (("--verify", "a"), "`model`"),
        (("--verify", "a", "--model", "embedded", "--url", "nowhere"), "is no address"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    run: Run, data: Path, tmp_path: Path, flags: tuple[str, ...], named: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    here = [str(tmp_path / "a") if flag == "a" else flag for flag in flags]
    code, _, err = run("export", data, *here, "--quiet")
    assert code == 2
    assert named in err
    assert err.count("\n") == 1


def test_every_flag_of_a_verification_is_a_setting_and_the_other_way_round() -> None:
    parameters = set(inspect.signature(export.run).parameters)
    assert VerifyConfig.model_fields.keys() - {"map"} <= parameters
    given = parameters - {"files", "format_", "map_", "config", "as_json", "quiet", "out"}
    assert given <= VerifyConfig.model_fields.keys()


def test_it_needs_no_torch() -> None:
    program = "import sys, fam_engine.jobs.exporting.job; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

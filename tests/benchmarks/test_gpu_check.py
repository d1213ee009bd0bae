"""`make gpu-check`: what one part does costs no other part its result, and every script runs. GPU time is dear."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from docs.generators import benchmarks as generated

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text(json.dumps({"half": 1}))
print("told", flush=True)
"""


@pytest.fixture
def job(tmp_path: Path) -> Any:  # noqa: ANN401
    """Give what runs a job that writes a result and then does as it is told."""
    import gpu_check

    def run(then: str, seconds: float) -> dict[str, Any]:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + then)
        one = gpu_check.Job("tests", "tests", (str(script),), seconds)
        found: dict[str, Any] = gpu_check.run_job(one, tmp_path, tmp_path / "log", seconds)
        return found

    return run


def test_what_was_found_before_a_failure_is_kept(job: Any) -> None:  # noqa: ANN401
    found = job("sys.exit(3)", 60)
    assert (found["exit_code"], found["timed_out"]) == (3, False)
    assert found["result"] == {"half": 1}
    assert found["output"][-1] == "told"


def test_what_was_found_before_the_time_was_up_is_kept(job: Any) -> None:  # noqa: ANN401
    found = job("time.sleep(600)", 3)
    assert found["timed_out"]
    assert found["exit_code"] is None
    assert found["result"] == {"half": 1}


def test_bytes_that_are_no_text_end_nothing(job: Any) -> None:  # noqa: ANN401
    found = job("sys.stdout.buffer.write(b'\\xff told\\n'); sys.exit(3)", 60)
    assert found["output"][-1] == "\ufffd told"


def test_a_run_without_a_job_fails_and_leaves_no_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_check

    (tmp_path / "gpu_check.json").write_text("{}")
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--parts", "curves"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    assert gpu_check.main() == 2
    assert capsys.readouterr().err.startswith("error: nothing to run with parts curves")
    assert not any(tmp_path.iterdir())


def test_the_commit_is_the_bundles_where_the_package_is_not_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_check

    import fam_engine
    from fam_engine.jobs.bench import machine

    bundled = tmp_path / "dist" / "gpu" / "commit.txt"
    bundled.parent.mkdir(parents=True)
    bundled.write_text("of-bundle\n")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "_commit", lambda: "of-checkout")
    for folder, commit in (("engine", "of-checkout"), ("site", "of-bundle")):
        package = tmp_path / folder / "fam_engine" / "__init__.py"
        monkeypatch.setattr(fam_engine, "__file__", str(package))
        assert gpu_check.environment("cpu")["commit"] == commit


def test_a_file_without_a_test_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_tests

    (tmp_path / "test_none.py").write_text("")
    monkeypatch.setattr(gpu_tests, "run_sanitizer", lambda device: {"found": "absent"})
    arguments = ["--out", str(tmp_path / "out.json"), "--files", str(tmp_path / "test_none.py")]
    monkeypatch.setattr(sys, "argv", ["gpu_tests.py", *arguments])
    assert gpu_tests.main() == 1


def test_a_part_without_time_says_so() -> None:
    import gpu_check

    one = gpu_check.Job("probe", "probe", ("gpu_probe.py",), 10)
    found = gpu_check._run_in_time(one, Path(), Path(), 3.0)
    assert gpu_check._said(found) == "no time left"


@pytest.mark.parametrize("peers", [[], ["peft"]])
def test_steps_of_8192_tokens_are_trained_too(peers: list[str]) -> None:
    import gpu_check

    options = argparse.Namespace(device="cuda", models=Path(), peers=peers)
    (training,) = (one for one in gpu_check._jobs_of_shape("8b", options) if one.part == "training")
    after = training.command[training.command.index("--budgets") + 1 :]
    budgets = [int(one) for one in itertools.takewhile(str.isdigit, after)]
    assert {4096, 8192, 16384} <= set(budgets)
    assert budgets[-1] == 8192  # whose rows are lost first if time runs out


@pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu-check itself runs there")
def test_every_part_of_ours_runs(models: Path, tmp_path: Path) -> None:
    parts = ["tests", "scoring", "decoding", "training", "probe", "steps", "longest"]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--out", str(tmp_path)]
    command += ["--device", "cpu", "--shapes", "tiny", "--models", str(models), "--parts", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    log = (tmp_path / "gpu_check.log").read_text()
    assert done.returncode == 0, log[-3000:]
    answer = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(answer["parts"]) == parts
    assert answer["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    table = (tmp_path / "gpu_check.md").read_text()
    for row in (
        "| tiny | L8 |",
        "| tiny | rewrite | fam-engine |",
        "| tiny | blocks | 128 | none |",
        "| tiny | 1 at a time with an adapter |",
    ):
        assert row in table
    assert "compute-sanitizer over every kernel once: absent" in table
    assert len(list(tmp_path.iterdir())) == 3


def answer_with(parts: dict[str, Any]) -> dict[str, Any]:
    about = {"device": "Card", "date": "2026-01-01", "commit": None, "gpu": {}, "versions": {}}
    return {"environment": about, "parts": parts}


def test_lost_rows_and_failed_jobs_stay_in_the_table() -> None:
    import gpu_table

    row = {"shape": "8b", "workload": "rewrite", "peer": {"error": "OutOfMemoryError: much"}}
    ended = {"exit_code": 1, "timed_out": False, "seconds": 4.0, "result": {"results": [row]}}
    unrun = {"exit_code": None, "timed_out": True, "seconds": 0.0, "result": None}
    told = gpu_table.markdown(answer_with({"decoding": {"8b": ended}, "probe": {"probe": unrun}}))
    assert "| 8b | rewrite | peer | OutOfMemoryError: much |" in told
    assert "`8b` ended with exit code 1; what it had found is above." in told
    assert "`probe` was not run: no time was left." in told


def test_the_documentation_says_when_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "RESULTS", tmp_path)
    assert generated.gpu() == "Not yet measured on a GPU.\n"
    (tmp_path / "gpu_card.json").write_text(json.dumps(answer_with({})))
    assert "Card, 2026-01-01, commit unknown." in generated.gpu()


def test_the_sanitizer_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_tests

    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert gpu_tests.run_sanitizer("cpu") == {"found": "absent"}
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '========= Invalid __global__ write'\nexit 9\n")
    tool.chmod(0o755)
    found = gpu_tests.run_sanitizer("cpu")
    assert found["found"] == "errors"
    assert found["output"] == ["========= Invalid __global__ write"]


def test_a_command_out_of_time_is_left_though_what_it_started_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gpu_tests

    monkeypatch.setattr(gpu_tests, "MOST_SECONDS", 1)
    found = gpu_tests.run(["sh", "-c", "echo begun; sleep 20 & wait"], {})
    assert found["timed_out"]
    assert found["seconds"] < 15
    assert found["output"] == ["begun"]


def test_a_wheel_is_cut_to_what_is_kept(tmp_path: Path) -> None:
    import gpu_wheels

    wheel = tmp_path / "unsloth-1-py3-none-any.whl"
    names = [
        "unsloth/models/a.py",
        "unsloth-1.dist-info/METADATA",
        "studio/big",
        "unsloth_cli/b.py",
    ]
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, name)
    gpu_wheels.cut(wheel, gpu_wheels._of_unsloth)
    assert zipfile.ZipFile(wheel).namelist() == names[:2]

from __future__ import annotations

import json
import sys
from functools import partialmethod
from pathlib import Path

import pytest

from fam_engine.cli.lm_eval import with_model
from tests.cli.conftest import Run

TASK = """
task: local_words
dataset_path: json
test_split: test
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "words.jsonl"
    rows = [{"question": f"word {n}", "choices": ["a", "b c"], "label": 0} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"))
    return tmp_path


@pytest.mark.filterwarnings("default")  # neither lm-eval nor datasets is free of warnings
def test_a_task_runs_and_leaves_lm_evals_own_files(
    run: Run, tiny_model: Path, tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs the package `lm-eval`")
    out = tmp_path / "results"
    code, printed, _ = run(
        "lm-eval",
        *("--tasks", "local_words", "--include_path", tasks, "--output_path", out),
        *("--model_args", f"pretrained={tiny_model},precision=fp32", "--device", "cpu"),
        *("--log_samples", "--seed", "1"),
    )
    assert code == 0
    assert "local_words" in printed
    (results,) = out.rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["config"]["model"] == "fam-engine"
    assert found["config"]["model_precision"] == "fp32"
    (samples,) = out.rglob("samples_local_words_*.jsonl")
    assert len(samples.read_text().splitlines()) == 3


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("arguments", "code", "starts", "named"),
    [
        (("--model_args", "pretrained=nowhere"), 10, "error[E_MODEL_NOT_FOUND]", "nowhere"),
        (("--model_args", "pretrained=embedded,dtype=x"), 2, "error[E_LM_EVAL_ARGS]", "precision"),
        ((), 2, "error[E_LM_EVAL_ARGS]", "give --model_args pretrained=MODEL"),
        (("--model", "nothing"), 2, "error[E_LM_EVAL]", "nothing"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    starts: str,
    named: str,
) -> None:
    found_tasks = pytest.importorskip("lm_eval.tasks", reason="needs the package `lm-eval`")
    # It reads its own thousands of tasks each time, for 6 seconds; the test above has it do so.
    only_given = partialmethod(found_tasks.TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(found_tasks.TaskManager, "__init__", only_given)
    given = ("lm-eval", "--tasks", "local_words", "--include_path", tasks, *arguments)
    found, _, err = run(*given)
    last = err.splitlines()[-1]
    assert found == code
    assert last.startswith(starts)
    assert named in last


def test_without_the_package_its_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = run("lm-eval", "--tasks", "x")
    assert code == 2
    assert err == (
        "error[E_EXTRA]: lm-evaluation-harness is not installed "
        "(pip install 'fam-engine[lm-eval]')\n"
    )


@pytest.mark.parametrize(
    ("arguments", "is_added"),
    [
        (["--tasks", "x"], True),
        (["run", "--tasks", "x"], True),
        (["--tasks", "x", "--model", "hf"], False),
        (["--tasks", "x", "--model=hf"], False),
        (["--tasks", "x", "-M", "hf"], False),
        (["--config", "x.yaml"], False),
        (["ls", "tasks"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_our_model_is_the_choice_where_none_is_made(arguments: list[str], is_added: bool) -> None:
    added = ["--model", "fam-engine"] if is_added else []
    assert with_model(arguments) == [*arguments, *added]

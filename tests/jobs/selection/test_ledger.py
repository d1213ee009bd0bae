from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.errors import InputError
from fam_engine.jobs.selection.ledger import read_ledger
from fam_engine.jobs.selection.replay import run_replay

GOOD = "model,task,variant,ppl,mine:highest,note,acc_mean\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ledger.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_understood_named_or_left_aside(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD + 'm,t,a,2.5,1,"x, y",0.5\nm,t,b,inf,2,,0.6\nm,t,c,,3,,0.7\nm,t,d,4,4,,\n'
        "m,alone,a,1,1,,0.5\n\n",
    )
    ledger = read_ledger(path)
    (cell,) = ledger.cells
    assert (cell.model, cell.task, cell.accuracies.tolist()) == ("m", "t", [0.5, 0.6])
    assert cell.metrics["perplexity"].tolist() == [2.5, float("inf")]
    assert cell.metrics["mine"].tolist() == [1.0, 2.0]
    assert ledger.directions == {"perplexity": "lowest", "mine": "highest"}
    assert ledger.ignored_columns == ("note",)
    assert ledger.left_out == {
        "without_accuracy": 1,
        "without_perplexity": 1,
        "without_mine": 0,
        "alone_in_their_cell": 1,
    }


@pytest.mark.parametrize(
    ("text", "where", "named", "remedy"),
    [
        (GOOD + "m,t,a,1,1,,0.5\nm,t,b,x,1,,0.5\n", ":3", "`ppl` is `x`", "leave the field empty"),
        (GOOD + "m,t,a,nan,1,,0.5\n", ":2", "`ppl` is `nan`", "leave the field empty"),
        (GOOD + "m,t,a,1,1,,44.1\n", ":2", "between 0 and 1", "divide percentages by 100"),
        (GOOD + "m,t,a,1,1,,-0.1\n", ":2", "between 0 and 1", "divide"),
        (GOOD + "m,t,a,1,1\n", ":2", "has 5 fields, expected 7", "quote"),
        (GOOD + "m,t,a,1,1,,.5\nm,t,a,2,1,,.5\n", ":3", "m / t / a of line 2", "keep one"),
        (GOOD + "m,,a,1,1,,.5\n", ":2", "has no `task`", "fill it in"),
        ("model,task,ppl,acc_mean\nm,t,1,1\n", ":1", "no column `variant`", "add it"),
        ("model,task,variant,ppl\nm,t,a,1\n", ":1", "no column `accuracy`", "add it"),
        ("model,task,variant,accuracy\nm,t,a,1\n", ":1", "no column of a metric", "NAME:lowest"),
        ("model,task,variant,ppl,perplexity,accuracy\na,b,c,1,1,1\n", ":1", "twice", "leave one"),
        ("model,task,variant,ppl,ppl,accuracy\na,b,c,1,1,1\n", ":1", "twice", "rename"),
        ("model,taks,variant,ppl,accuracy\nm,t,a,1,1\n", ":1", "did you mean `taks`", "add it"),
        (GOOD, "", "no lines below its header", ""),
        (GOOD + "m,t,a,1,1,,0.5\n", "", "no model and task with two variants", "fill in"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(
    tmp_path: Path, text: str, where: str, named: str, remedy: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_ledger(path)
    message = str(caught.value)
    assert f"{path}{where}: " in message
    assert named in message
    assert remedy in message
    assert caught.value.exit_code == 4


def test_what_is_no_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read_ledger(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_ledger(path)


def rows(task: str, *accuracies: float) -> str:
    return "".join(f"m,{task},v{i},{i},{i},,{a}\n" for i, a in enumerate(accuracies))


def test_leaked_and_planning_tasks_are_judged_apart(tmp_path: Path) -> None:
    text = GOOD + rows("boolq", 0.9, 1.0) + rows("gsm8k", 0.4, 0.3) + rows("plan_bench_x", 0, 1)
    result = run_replay(write(tmp_path, text))
    assert (result["cells"], result["without_boolq"]["cells"], result["plan_bench"]["cells"]) == (
        2,
        1,
        1,
    )
    assert result["metrics"]["perplexity"]["regret"] == pytest.approx(5.0)
    assert result["without_boolq"]["metrics"]["perplexity"]["regret"] == 0.0
    assert result["plan_bench"]["random"]["regret"] == pytest.approx(50.0)
    assert "plan_bench" in result["rule"]


def test_a_ledger_of_nothing_else_is_judged_as_it_is(tmp_path: Path) -> None:
    for task in ("boolq", "plan_bench_x", "gsm8k"):
        result = run_replay(write(tmp_path, GOOD + rows(task, 0.2, 0.4)))
        assert result["cells"] == 1
        assert not {"without_boolq", "plan_bench"} & result.keys()


def test_the_released_ledger_gives_the_known_figures(shared: Path) -> None:
    # Regrets in points over 51 cells, and without BoolQ, whose rows leaked.
    path = shared / "data" / "reference_results" / "sppl_metrics_vs_accuracy.csv"
    result = run_replay(path)
    assert result["cells"] == 51
    known = {
        "perplexity": (0.99, 0.31),
        "in_context_perplexity": (0.96, 0.32),
        "ifd": (2.29, 0.21),
        "logprob": (2.80, 0.07),
        "skywork": (2.52, 0.25),
        "car": (2.32, 0.27),
    }
    for name, (regret, correlation) in known.items():
        entry = result["metrics"][name]
        assert entry["regret"] == pytest.approx(regret, abs=0.02)
        assert entry["spearman"] == pytest.approx(correlation, abs=0.01)
        assert entry["interval"][0] < entry["regret"] < entry["interval"][1]
    assert result["random"]["regret"] == pytest.approx(2.38, abs=0.02)
    for name in ("perplexity", "in_context_perplexity"):
        assert result["metrics"][name]["against_random"]["verdict"] == "better"

    clean = result["without_boolq"]
    assert clean["cells"] == 48
    assert clean["metrics"]["perplexity"]["regret"] == pytest.approx(1.02, abs=0.02)
    assert clean["metrics"]["in_context_perplexity"]["regret"] == pytest.approx(0.99, abs=0.02)
    assert clean["random"]["regret"] == pytest.approx(2.44, abs=0.02)

    plans = result["plan_bench"]
    assert plans["metrics"]["perplexity"]["regret"] == pytest.approx(8.31, abs=0.02)
    assert plans["metrics"]["in_context_perplexity"]["regret"] == pytest.approx(4.74, abs=0.02)
    assert plans["random"]["regret"] == pytest.approx(9.52, abs=0.02)

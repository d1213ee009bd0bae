from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fam_engine.errors import InputError, ModelRefusedError, UsageError
from fam_engine.jobs import running
from fam_engine.jobs.evaluation import job as evaluation_job
from fam_engine.jobs.evaluation.evaluator import Evaluator
from fam_engine.jobs.generation.texts import TextMaker
from fam_engine.jobs.interrupts import Interrupted, Interrupts
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.scoring.scorer import Scorer
from tests.jobs.evaluation.small_eval import (
    CHOICES,
    QUESTIONS,
    evaluate,
    make_adapter,
    samples,
    write,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "task.jsonl", [*QUESTIONS, *CHOICES])


@pytest.fixture
def adapters(tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    return (
        make_adapter(tiny_model, tmp_path / "one" / "adapter", seed=1),
        make_adapter(tiny_model, tmp_path / "two" / "adapter", seed=2),
    )


def accuracies(out: Path) -> dict[tuple[str, str], float]:
    tasks = json.loads((out / "summary.json").read_text())["tasks"]
    return {
        (task, name): one["accuracy"]
        for task, entry in tasks.items()
        for name, one in entry["models"].items()
    }


def test_every_adapter_answers_every_task(
    tiny_model: Path, data: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = evaluate(tiny_model, data, out, adapter=adapters)
    rows = samples(out)
    assert [row["model"] for row in rows] == ["base"] * 11 + ["one"] * 11 + ["two"] * 11
    assert [row["id"] for row in rows[:11]] == [r["id"] for r in [*QUESTIONS, *CHOICES]]
    assert {path.name for path in out.iterdir()} == {".fam-engine", *evaluation_job.OUTPUTS}
    assert not any((out / ".fam-engine" / "models").iterdir())
    for task, entry in outcome.summary["tasks"].items():
        assert entry["n"] == (6 if task == "colours" else 5)
        assert list(entry["models"]) == ["base", "one", "two"]
        for name, one in entry["models"].items():
            own = [row for row in rows if (row["task"], row["model"]) == (task, name)]
            assert one["num_correct"] == sum(row["correct"] for row in own)
            assert one["accuracy"] == one["num_correct"] / one["n"]
            assert one["interval"][0] <= one["accuracy"] <= one["interval"][1]
            assert (one["versus_base"] is None) == (name == "base")
    assert outcome.summary["records"] == {
        "read": 11,
        "evaluated": 11,
        "quarantined": 0,
        "quarantined_by_code": {},
        "skipped": 0,
    }
    # Adapters that change nothing would make the comparison vacuous.
    texts_of = {
        name: [r["response"] for r in rows if r["model"] == name] for name in ("base", "one", "two")
    }
    assert texts_of["base"] != texts_of["one"] != texts_of["two"]


def test_right_answers_are_counted_right(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    evaluate(tiny_model, data, tmp_path / "first")
    wrote = [row["response"] for row in samples(tmp_path / "first")][: len(QUESTIONS)]
    records = [
        {**record, "answer": text if number % 3 else "blue", "kind": "exact"}
        for number, (record, text) in enumerate(zip(QUESTIONS, wrote, strict=True))
    ]
    again = write(tmp_path / "again.jsonl", records)
    evaluate(tiny_model, again, tmp_path / "second")
    assert [row["correct"] for row in samples(tmp_path / "second")] == [
        False, True, True, False, True, True,
    ]  # fmt: skip
    assert accuracies(tmp_path / "second") == {("colours", "base"): 4 / 6}


def test_an_answer_does_not_depend_on_what_else_is_asked(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    evaluate(tiny_model, data, tmp_path / "all", **settings)
    some = write(tmp_path / "some.jsonl", [CHOICES[3], QUESTIONS[4], QUESTIONS[1]])
    evaluate(tiny_model, some, tmp_path / "some", **settings)
    expected = {row["id"]: row for row in samples(tmp_path / "all")}
    for row in samples(tmp_path / "some"):
        same = {name: value for name, value in row.items() if name not in ("file", "line")}
        assert same == {name: expected[row["id"]][name] for name in same}


def test_options_are_chosen_by_the_scores_of_the_scorer(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    evaluate(tiny_model, data, tmp_path / "sum")
    evaluate(tiny_model, data, tmp_path / "sum", choice_metric="acc")
    scorer = Scorer(tiny_model, precision="fp32", device="cpu")
    for row in [row for row in samples(tmp_path / "sum") if row["task"] == "options"]:
        choices = row["choices"]
        prompt = next(record["prompt"] for record in CHOICES if record["id"] == row["id"])
        sums = [-scorer.token_logprobs(str(prompt), choice).sum() for choice in choices]
        assert row["choice_nll_sums"] == pytest.approx(sums, rel=1e-14)
        by_sum = min(range(3), key=sums.__getitem__)
        by_byte = min(range(3), key=lambda i: sums[i] / len(choices[i]))
        assert row["correct_acc"] == (by_sum == 1)
        assert row["correct_acc_norm"] == (by_byte == 1)
        assert row["response"] == choices[by_sum]
        assert row["correct"] == row["correct_acc"]
        assert row["answer"] == "a dark blue"


def test_the_other_metric_needs_no_new_scores(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tiny_model, data, tmp_path / "out")
    monkeypatch.setattr(running, "open_model", None)
    evaluate(tiny_model, data, tmp_path / "out", choice_metric="acc_norm")
    rows = [row for row in samples(tmp_path / "out") if row["task"] == "options"]
    assert all(row["correct"] == row["correct_acc_norm"] for row in rows)


def test_options_can_be_chosen_by_writing(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    evaluate(tiny_model, data, tmp_path / "out", choice_by="generation")
    rows = [row for row in samples(tmp_path / "out") if row["task"] == "options"]
    assert {row["method"] for row in rows} == {"generation"}
    assert {row["choice_nll_sums"] for row in rows} == {None}
    assert {row["finish_reason"] for row in rows} <= {"eos", "length"}


def test_an_adapter_that_joins_later_is_computed_alone(
    tiny_model: Path,
    data: Path,
    adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate(tiny_model, data, tmp_path / "whole", adapter=adapters)
    evaluate(tiny_model, data, tmp_path / "parts", adapter=adapters[:1])
    computed = []
    real = TextMaker.run

    def run(*arguments: Any, **named: Any) -> None:  # noqa: ANN401
        computed.append(1)
        real(*arguments, **named)

    monkeypatch.setattr(TextMaker, "run", run)
    evaluate(tiny_model, data, tmp_path / "parts", adapter=adapters)
    assert len(computed) == 1
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    evaluate(tiny_model, data, tmp_path / "parts", adapter=adapters[1:], base=False)
    assert {row["model"] for row in samples(tmp_path / "parts")} == {"two"}


def test_a_copy_of_an_adapter_has_the_same_answers(
    tiny_model: Path, data: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters[0], tmp_path / "copy" / "adapter")
    folders = (adapters[0], tmp_path / "copy" / "adapter")
    evaluate(tiny_model, data, tmp_path / "out", adapter=folders, base=False)
    rows = samples(tmp_path / "out")
    assert [row["model"] for row in rows] == ["one"] * 11 + ["copy"] * 11
    for first, second in zip(rows[:11], rows[11:], strict=True):
        assert {**first, "model": ""} == {**second, "model": ""}


@pytest.mark.parametrize("stop_at", [1, 4, 9, 15, 22])
def test_a_job_that_was_stopped_ends_the_same(
    tiny_model: Path,
    data: Path,
    adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    evaluate(tiny_model, data, tmp_path / "whole", adapter=adapters[:1])
    calls = 0

    def check(_: Interrupts) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Interrupted(2)

    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "check", check)
        with pytest.raises(Interrupted):
            evaluate(tiny_model, data, tmp_path / "out", adapter=adapters[:1])
    evaluate(tiny_model, data, tmp_path / "out", adapter=adapters[:1])
    assert samples(tmp_path / "out") == samples(tmp_path / "whole")


def test_other_settings_do_not_continue_it(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    evaluate(tiny_model, data, tmp_path / "out")
    with pytest.raises(UsageError, match="max_new_tokens"):
        evaluate(tiny_model, data, tmp_path / "out", max_new_tokens=13)


def test_what_cannot_be_asked_or_judged_is_left_out_and_counted(
    tiny_model: Path, tmp_path: Path
) -> None:
    prompt = {"prompt": "question?\n"}
    bad = {
        "E_NO_GOLD": [prompt, prompt | {"answer": " "}, prompt | {"kind": "code", "answer": "4"}],
        "E_CHOICES": [prompt | {"answer": "A", "choices": ["red"]}],
        "E_RECORD_TYPE": [
            prompt | {"answer": "a", "choices": "ab"},
            prompt | {"answer": "a", "tests": [1]},
            prompt | {"answer": ["a"]},
        ],
        "E_KIND": [prompt | {"answer": "a", "kind": "poetry"}],
        "E_JSON_SURROGATE": [prompt | {"answer": "\ud800"}],
        "E_RECORD_FIELD": [{"answer": "a"}],
        "E_TOO_LONG": [
            {"prompt": "x" * 250, "answer": "4"},
            prompt | {"answer": "B", "choices": ["a", "x" * 260]},
        ],
    }
    for answer in ("F", "0", 0, 1, 1.0):  # a number may count from 0 or from 1
        bad["E_NO_GOLD"].append(prompt | {"answer": answer, "choices": ["red", "blue"]})
    # The text of one, but counted from 0 or from 1 it is another.
    for choices in (["1", "2", "3", "4"], ["4", "5", "8", "3"]):
        bad["E_NO_GOLD"].append(prompt | {"answer": 3, "choices": choices})
    records = [QUESTIONS[0], *(record for some in bad.values() for record in some)]
    outcome = evaluate(tiny_model, write(tmp_path / "task.jsonl", records), tmp_path / "out")
    counts = {code: len(some) for code, some in bad.items()}
    assert outcome.summary["records"]["quarantined_by_code"] == counts
    assert outcome.summary["records"]["read"] == len(records)
    assert outcome.summary["records"]["evaluated"] == 1
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(2, len(records) + 1))


@pytest.mark.parametrize(
    ("answer", "choices"), [(12, ["10", "12"]), (2, ["1", "2"]), (1.5, ["1.5", "2", "3"])]
)
def test_a_number_that_can_only_be_the_text_of_an_option_is_taken(
    tiny_model: Path, tmp_path: Path, answer: float, choices: list[str]
) -> None:
    record = {"prompt": "question?\n", "answer": answer, "choices": choices}
    evaluate(tiny_model, write(tmp_path / "task.jsonl", [record]), tmp_path / "out")
    (row,) = samples(tmp_path / "out")
    assert row["answer"] == str(answer)


def test_files_of_one_name_are_tasks_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    for folder in ("gsm8k", "math"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "test.jsonl", [{"prompt": f"{folder}?\n", "answer": "4"}])
    files = [tmp_path / folder / "test.jsonl" for folder in ("gsm8k", "math")]
    outcome = evaluate(tiny_model, files, tmp_path / "out")
    assert list(outcome.summary["tasks"]) == ["gsm8k/test", "math/test"]


def test_a_file_without_a_usable_question_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "task.jsonl", [{"prompt": "a\n"}])
    said = r"E_NO_GOLD: .* no gold answer \(add the right one as `answer`, or --map answer=COLUMN\)"
    with pytest.raises(InputError, match=said):
        evaluate(tiny_model, data, tmp_path / "out")


def test_an_empty_answer_is_wrong_and_not_left_out(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    evaluate(tiny_model, data, tmp_path / "first")
    first = samples(tmp_path / "first")[0]["response"][0]
    outcome = evaluate(tiny_model, data, tmp_path / "out", stop=(first,))
    row = samples(tmp_path / "out")[0]
    assert (row["response"], row["finish_reason"], row["correct"]) == ("", "stop", False)
    assert outcome.num_quarantined == 0
    assert outcome.summary["tasks"]["colours"]["models"]["base"]["n"] == 6


def test_what_the_model_cannot_compute_is_no_wrong_answer(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    # Queries times keys overflow: no logits, no log-probs.
    wild = make_adapter(tiny_model, tmp_path / "wild", seed=0, strength=1e30)
    outcome = evaluate(tiny_model, data, tmp_path / "out", adapter=(wild,))
    for task in outcome.summary["tasks"].values():
        one = task["models"]["wild"]
        assert (one["n"], one["failed"], one["accuracy"]) == (0, task["n"], None)
        assert one["versus_base"]["n"] == 0
        assert task["models"]["base"]["n"] == task["n"]
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_NONFINITE": 11}
    assert outcome.summary["records"]["read"] == 11
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_answers_cut_by_the_length_are_counted(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    outcome = evaluate(tiny_model, data, tmp_path / "out", max_new_tokens=3)
    cut = sum(row["finish_reason"] == "length" for row in samples(tmp_path / "out"))
    assert cut > 0
    assert outcome.summary["tasks"]["colours"]["models"]["base"]["cut_by_length"] == cut


def test_examples_stand_before_each_question_but_its_own(tiny_model: Path, tmp_path: Path) -> None:
    examples = [{"prompt": f"question {n}?\n", "response": f"answer {n}"} for n in (0, 1, 2)]
    file = write(tmp_path / "examples.jsonl", examples)
    data = write(tmp_path / "task.jsonl", QUESTIONS[:3])
    evaluate(tiny_model, data, tmp_path / "out", few_shot=2, few_shot_file=str(file))
    prompts = [row["prompt"] for row in samples(tmp_path / "out")]
    first, second, third = (f"question {n}?\nanswer {n}\n\n" for n in (0, 1, 2))
    assert prompts == [
        f"{second}{third}question 0?\n",
        f"{first}{third}question 1?\n",
        f"{first}{second}question 2?\n",
    ]
    with pytest.raises(InputError, match=r"holds 3 records, as few as 2 .* at least 3"):
        evaluate(tiny_model, data, tmp_path / "x", few_shot=3, few_shot_file=str(file))
    # The same question twice: beside it there is only one other.
    write(file, [*examples[:2], {**examples[1], "response": "another answer"}])
    with pytest.raises(InputError, match=r"holds 3 records, as few as 1 .* at least 2"):
        evaluate(tiny_model, data, tmp_path / "x", few_shot=2, few_shot_file=str(file))


def test_adapters_are_checked_before_anything_is_computed(
    tiny_model: Path, data: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    (adapters[1] / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelRefusedError):
        evaluate(tiny_model, data, tmp_path / "out", adapter=adapters)
    with pytest.raises(ModelRefusedError, match="not a folder"):
        evaluate(tiny_model, data, tmp_path / "out", adapter=(tmp_path / "none",))
    with pytest.raises(UsageError, match="twice"):
        evaluate(tiny_model, data, tmp_path / "out", adapter=(adapters[0], adapters[0]))
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate(tiny_model, data, tmp_path / "out", base=False)
    assert not (tmp_path / "out").exists()


def test_other_programs_get_the_same(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    evaluate(tiny_model, data, tmp_path / "files")
    evaluator = Evaluator(tiny_model, precision="fp32", device="cpu", max_new_tokens=12)
    outcome = evaluator.evaluate([*QUESTIONS, *CHOICES], tmp_path / "memory")
    rows = [samples(tmp_path / name) for name in ("files", "memory")]
    for row in [*rows[0], *rows[1]]:
        del row["file"]
    assert rows[0] == rows[1]
    assert outcome.summary["tasks"]["colours"]["n"] == 6
    with pytest.raises(UsageError, match="max_new_token"):
        Evaluator(tiny_model, max_new_token=3)


def test_other_programs_hear_of_settings_that_would_do_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("data", "out"):
        with pytest.raises(UsageError, match=f"`{name}` would do nothing.*to `evaluate`"):
            Evaluator(tiny_model, **{name: "x"})
    evaluator = Evaluator(tiny_model, precision="fp32", device="cpu")
    given = {"data": "x", "model": "embedded", "precision": "nf4", "device": "cuda"}
    for name, value in given.items():
        with pytest.raises(UsageError, match=f"`{name}` would do nothing"):
            evaluator.evaluate(QUESTIONS, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_records_of_other_programs_replace_no_file(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "records").mkdir(parents=True)
    (out / "records" / "records.jsonl").write_text("of somebody else")
    evaluator = Evaluator(tiny_model, precision="fp32", device="cpu", max_new_tokens=4)
    evaluator.evaluate(QUESTIONS, out)
    (kept,) = (out / STATE_FOLDER).rglob("records.jsonl")
    before = kept.read_bytes()
    with pytest.raises(UsageError, match="contents of the file in data"):
        evaluator.evaluate(QUESTIONS[:1], out)
    assert list((out / STATE_FOLDER).rglob("records.jsonl")) == [kept]
    assert kept.read_bytes() == before
    assert (out / "records" / "records.jsonl").read_text() == "of somebody else"

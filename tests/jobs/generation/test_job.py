"""The generating job: its records, its failures, its interruptions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fam_engine
from fam_engine.config import GenerateConfig, ScoreConfig
from fam_engine.embedded import DEMO_RECORDS
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs import running
from fam_engine.jobs.generation.forecast import forecast_generate
from fam_engine.jobs.generation.job import run_generate
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.scoring.job import run_score
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Completion, Request
from tests.model.shortages import SHORTAGES


class Silent:
    """Nobody to tell about progress; may stop the job after some records."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self._left = stop_after

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, count: int, detail: str = "") -> None:
        if detail:
            self._left -= count
        if self._left < 0:
            raise Interrupted(15)

    def note(self, text: str) -> None: ...


WORDS = ["one", "two", "apples", "pears", "more", "less", "left", "right"]


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "prompt": " ".join(WORDS[(n + i) % 8] for i in range(1 + n % 5)) + "?\n"}
        for n in range(count)
    ]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def generate(
    model: Path,
    data: Path,
    out: Path,
    progress: Silent | None = None,
    **settings: Any,  # noqa: ANN401
) -> JobOutcome:
    config = GenerateConfig.model_validate(
        {
            "model": str(model),
            "data": (str(data),),
            "out": out,
            "precision": "fp32",
            "temperature": 1.0,
            "max_new_tokens": 12,
            **settings,
        }
    )
    return run_generate(config, progress or Silent())


def records_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "generated.jsonl").read_text().splitlines()]


def texts_in(out: Path) -> dict[str, str]:
    return {record["id"]: record["response"] for record in records_in(out)}


def test_records_come_out_in_order_with_their_origin(tiny_model: Path, tmp_path: Path) -> None:
    rows = questions(6)
    rows[1] |= {"group": "g", "task": "counting", "response": "not read", "extra": [1]}
    out = tmp_path / "out"
    outcome = generate(tiny_model, write(tmp_path / "q.jsonl", rows), out, samples=3)
    records = records_in(out)
    assert [record["id"] for record in records] == [f"q{n}#{k}" for n in range(6) for k in range(3)]
    assert {record["source"] for record in records} == {tiny_model.name}
    assert records[3]["prompt"] == rows[1]["prompt"]
    assert records[3]["group"] == "g"
    assert records[3]["task"] == "counting"
    assert "extra" not in records[3]
    assert len({record["response"] for record in records}) > 12
    origin = records[4]["provenance"]
    assert origin["method"] == "generate"
    assert (origin["parent"], origin["attempt"], origin["seed"]) == ("q1", 1, 0)
    assert origin["model"] == str(tiny_model)
    assert outcome.summary["records"] == {
        "read": 6,
        "generated": 6,
        "quarantined": 0,
        "quarantined_by_code": {},
        "skipped": 0,
    }
    reasons = outcome.summary["finish_reasons"]
    assert sum(reasons.values()) == 18
    assert outcome.summary == json.loads((out / "summary.json").read_text())


def test_a_record_gets_the_same_text_in_any_company(tiny_model: Path, tmp_path: Path) -> None:
    rows = questions(20)
    generate(tiny_model, write(tmp_path / "a.jsonl", rows), tmp_path / "a", samples=2)
    generate(
        tiny_model,
        write(tmp_path / "b.jsonl", rows[11:3:-1]),
        tmp_path / "b",
        samples=2,
        max_slots=3,
    )
    whole, part = texts_in(tmp_path / "a"), texts_in(tmp_path / "b")
    assert len(part) == 16
    assert all(whole[name] == text for name, text in part.items())
    generate(tiny_model, tmp_path / "a.jsonl", tmp_path / "c", samples=2, seed=1)
    assert texts_in(tmp_path / "c") != whole


def test_every_form_of_a_question_is_read(tiny_model: Path, tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "a b?"}, {"role": "assistant", "content": "c"}
    forms: dict[str, dict[str, Any]] = {
        "text": {"prompt": "a b?\n"},
        "turns": {"messages": [user]},
        "answered": {"messages": [user, answer]},
        "sharegpt": {"conversations": [{"from": "human", "value": "a b?"}]},
        "list": {"prompt": [user], "completion": [answer]},
        "question": {"question": "a b?", "answer": "c"},
        "instruction": {"instruction": "a b?", "input": "", "output": None},
    }
    found = {}
    for name, row in forms.items():
        file = write(tmp_path / f"{name}.jsonl", [row])
        generate(tiny_model, file, tmp_path / name, temperature=0.0)
        (found[name],) = records_in(tmp_path / name)
    columns = {"question": "answer", "instruction": "output"}
    texts = {name: record[columns.get(name, "response")] for name, record in found.items()}
    # Without a template every form is the same prompt: "a b?" and a line break.
    assert len(set(texts.values())) == 1
    assert found["answered"]["messages"] == [user]
    assert "completion" not in found["list"]


def test_what_was_generated_can_be_scored(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{WORDS[n]} {WORDS[n + 1]}?"} for n in range(5)]
    generate(tiny_model, write(tmp_path / "q.jsonl", rows), tmp_path / "out", temperature=0.0)
    config = ScoreConfig(
        model=str(tiny_model),
        data=(str(tmp_path / "out" / "generated.jsonl"),),
        out=tmp_path / "scores",
        precision="fp32",
    )
    summary = run_score(config, Silent()).summary
    assert summary["records"]["scored"] == 5


def always_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let the model write one text whatever it is asked."""

    def fixed(
        self: Generator, requests: Iterator[Request], *_: object, **__: object
    ) -> Iterator[Completion]:
        for number, request in enumerate(requests):
            yield Completion(number, 0, request.context_ids, text, "eos")

    monkeypatch.setattr(Generator, "generate", fixed)


def test_answers_are_judged_where_there_is_a_gold_answer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_says(monkeypatch, "So the answer is 12.")
    rows = [
        {"id": "right", "prompt": "3 * 4?", "answer": 12},
        {"id": "wrong", "prompt": "3 * 5?", "answer": "15"},
        {"id": "open", "prompt": "why?"},
        # As a number `12.0` would be right.
        {"id": "exact", "prompt": "3 * 4?", "answer": "12.0", "kind": "exact"},
    ]
    outcome = generate(tiny_model, write(tmp_path / "q.jsonl", rows), tmp_path / "out")
    found = {record["provenance"]["parent"]: record for record in records_in(tmp_path / "out")}
    assert found["right"]["correct"] is True
    assert found["right"]["answer"] == 12
    assert found["wrong"]["correct"] is found["wrong"]["provenance"]["verified"] is False
    assert "correct" not in found["open"]
    assert found["open"]["provenance"]["verified"] is None
    assert found["exact"]["correct"] is False
    assert found["exact"]["kind"] == "exact"
    assert outcome.summary["samples"]["judged"] == 3
    assert outcome.summary["samples"]["correct"] == 1


def test_an_answer_beside_its_question_is_what_texts_are_judged_by(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the final answer it ends in, as `rewrite` reads it; of an essay nobody can tell."""
    always_says(monkeypatch, "So the answer is 12.")
    answers: dict[str, Any] = {
        "right": "Three times four is 12.\n#### 12",
        "wrong": "3 * 5 = 15\n#### 15",
        "number": 12,
        "essay": "Because the sun is far away, and the moon is near to us at night.",
        "unreadable": ["12"],
        "known to be wrong": "#### 12",
    }
    rows = [{"id": name, "question": f"{name}?", "answer": told} for name, told in answers.items()]
    rows[-1]["correct"] = False
    outcome = generate(tiny_model, write(tmp_path / "q.jsonl", rows), tmp_path / "out")
    found = {record["provenance"]["parent"]: record for record in records_in(tmp_path / "out")}
    assert {name: record.get("correct") for name, record in found.items()} == {
        "right": True,
        "wrong": False,
        "number": True,
        "essay": None,
        "unreadable": None,
        "known to be wrong": None,
    }
    assert {record["answer"] for record in found.values()} == {"So the answer is 12."}
    assert outcome.summary["samples"]["judged"] == 3


def test_bad_records_are_left_out_and_named(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    lines = [
        '{"prompt": "one?\\n"}',
        "{broken",
        '{"prompt": 7}',
        json.dumps({"prompt": "long " * 60}),
        '{"other": 1}',
        '{"question": "one?"}',
        '{"prompt": "two?\\n", "choices": "abc"}',
        '{"prompt": "two?\\n"}',
    ]
    file.write_text("\n".join(lines) + "\n")
    outcome = generate(tiny_model, file, tmp_path / "out")
    bad = [
        json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    ]
    assert [(row["line"], row["code"]) for row in bad] == [
        (2, "E_JSON_SYNTAX"),
        (3, "E_RECORD_TYPE"),
        (4, "E_TOO_LONG"),
        (5, "E_RECORD_FIELD"),
        (6, "E_RECORD_FIELD"),
        (7, "E_RECORD_TYPE"),
    ]
    assert bad[4]["reason"].endswith("this one with `question`")
    assert list(texts_in(tmp_path / "out")) == [f"{file}:1#0", f"{file}:8#0"]
    assert outcome.num_quarantined == 6
    assert outcome.summary["records"]["read"] == 8


def test_long_prompts_are_cut_from_the_left_if_asked(tiny_model: Path, tmp_path: Path) -> None:
    long, short = {"prompt": "x" * 500 + "one?\n"}, {"prompt": "x" * 243 + "one?\n"}
    settings: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 7}
    generate(
        tiny_model, write(tmp_path / "l.jsonl", [long]), tmp_path / "l", on_long="cut-prompt",
        **settings,
    )  # fmt: skip
    # 256 positions: 7 for the answer, BOS, and 248 tokens of one byte each.
    generate(tiny_model, write(tmp_path / "s.jsonl", [short]), tmp_path / "s", **settings)
    (cut,), (whole,) = records_in(tmp_path / "l"), records_in(tmp_path / "s")
    assert cut["response"] == whole["response"]
    assert cut["prompt"] == long["prompt"]
    summary = json.loads((tmp_path / "l" / "summary.json").read_text())
    assert summary["flags"] == {"prompt_cut": 1}


def test_a_file_without_a_question_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_RECORD_FORM"):
        generate(tiny_model, write(tmp_path / "q.jsonl", [{"text": "x"}]), tmp_path / "out")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no records"):
        generate(tiny_model, tmp_path / "empty.jsonl", tmp_path / "out2")
    file = write(tmp_path / "q.jsonl", questions(1))
    with pytest.raises(UsageError, match="no room"):
        generate(tiny_model, file, tmp_path / "out3", max_new_tokens=256)


@pytest.mark.parametrize("stop_after", [0, 7])
def test_a_stopped_job_goes_on_and_ends_the_same(
    tiny_model: Path, tmp_path: Path, stop_after: int
) -> None:
    file = write(tmp_path / "q.jsonl", questions(24))
    settings: dict[str, Any] = {"samples": 2, "max_slots": 4}
    with pytest.raises(Interrupted):
        generate(tiny_model, file, tmp_path / "a", Silent(stop_after), **settings)
    assert not (tmp_path / "a" / "generated.jsonl").exists()
    generate(tiny_model, file, tmp_path / "a", **settings)
    generate(tiny_model, file, tmp_path / "b", **(settings | {"max_slots": 64}))
    first, second = ((tmp_path / name / "generated.jsonl").read_bytes() for name in "ab")
    assert first == second
    with pytest.raises(UsageError, match="temperature"):
        generate(tiny_model, file, tmp_path / "a", temperature=0.5, **settings)


def test_a_finished_job_is_not_run_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "q.jsonl", questions(2))
    first = generate(tiny_model, file, tmp_path / "out")
    monkeypatch.setattr(running, "open_model", None)
    assert generate(tiny_model, file, tmp_path / "out").summary == first.summary


def test_memory_that_runs_out_lowers_the_slots_and_blames_one_record(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = questions(9)
    rows[4]["prompt"] = "p" * 99
    file = write(tmp_path / "q.jsonl", rows)
    generate(tiny_model, file, tmp_path / "healthy")
    original, shortages = Generator.generate, cycle(SHORTAGES[::-1])
    slots = []

    def short(
        self: Generator,
        requests: Iterator[Request],
        *rest: Any,  # noqa: ANN401
        **more: Any,  # noqa: ANN401
    ) -> Iterator[Completion]:
        def checked() -> Iterator[Request]:
            slots.append(self.max_slots)
            for number, request in enumerate(requests):
                # Three texts at a time are too many, and one is too large by itself.
                if len(request.context_ids) == 100 or (self.max_slots > 2 and number == 3):
                    raise next(shortages)()
                yield request

        return original(self, checked(), *rest, **more)

    monkeypatch.setattr(Generator, "generate", short)
    outcome = generate(tiny_model, file, tmp_path / "out")
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_OOM_RECORD": 1}
    assert outcome.summary["samples"]["empty"] == 0, "what was left out is no answer"
    assert 1 in slots
    assert slots[-1] == 2, "the others are as many at a time as fit, though one did not fit alone"
    healthy = texts_in(tmp_path / "healthy")
    del healthy["q4#0"]
    assert texts_in(tmp_path / "out") == healthy


def test_answers_without_a_text_are_left_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(
        self: Generator, requests: Iterator[Request], *_: object, **__: object
    ) -> Iterator[Completion]:
        for number, request in enumerate(requests):
            ids = request.context_ids
            yield Completion(number, 0, ids[:0], "", "eos")
            reason = ("eos", "nonfinite", "length")[number % 3]
            yield Completion(number, 1, ids, "text" if number % 3 else "", reason)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "generate", some)
    file = write(tmp_path / "q.jsonl", [{"id": n, "prompt": "same\n"} for n in range(3)])
    outcome = generate(tiny_model, file, tmp_path / "out", samples=2)
    assert outcome.summary["records"]["quarantined_by_code"] == {
        "E_EMPTY_RESPONSE": 1,
        "E_NONFINITE": 1,
    }
    assert texts_in(tmp_path / "out") == {"2#1": "text"}
    assert outcome.summary["records"]["read"] == 3
    assert outcome.summary["samples"]["empty"] == 5


def test_a_forecast_counts_without_a_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "open_model", None)
    config = GenerateConfig(
        model=str(tiny_model),
        data=(str(write(tmp_path / "q.jsonl", questions(7))),),
        out=tmp_path / "out",
        samples=2,
        temperature=1.0,
        max_new_tokens=10,
    )
    forecast = forecast_generate(config, Silent())
    assert (forecast.num_records, forecast.most_tokens) == (7, 140)
    assert forecast.memory_bytes > 0
    assert forecast.seconds > 0
    assert not (tmp_path / "out").exists()


def test_the_python_interface_gives_the_records_of_the_job(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = questions(4)
    settings: dict[str, Any] = {"samples": 2, "seed": 3}
    generate(tiny_model, write(tmp_path / "q.jsonl", rows), tmp_path / "out", **settings)
    with fam_engine.Generator(tiny_model, precision="fp32") as generator:
        sampling = fam_engine.Sampling(max_new_tokens=12, temperature=1.0)
        assert generator.generate(rows, sampling, **settings) == records_in(tmp_path / "out")
        with pytest.raises(UsageError, match="2 samples at temperature 0"):
            generator.generate(rows, samples=2)
        for samples in (0, -1, 1.5, "2"):  # the first three never ended
            with pytest.raises(UsageError, match=r"samples is .*, expected a whole number"):
                generator.generate(rows, sampling, samples=samples)  # type: ignore[arg-type]
        for seed in ("x", 1.5, None, True):
            with pytest.raises(UsageError, match=f"seed is {seed!r}, expected a whole number"):
                generator.generate(rows, sampling, seed=seed)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"max_new_tokens 256 leaves no .* less than 256"):
            generator.generate(rows, fam_engine.Sampling(max_new_tokens=256))
        with pytest.raises(InputError, match="record 2"):
            generator.generate([rows[0], {"prompt": "x" * 300}], sampling)


def test_an_answer_needs_no_second_pass(tmp_path: Path) -> None:
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))[:8]
    rows = [{"id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)]
    settings: dict[str, Any] = {"max_new_tokens": 180, "samples": 2, "precision": "fp32"}
    data = write(tmp_path / "q.jsonl", rows)
    generate(Path("embedded"), data, tmp_path / "out", compute_dtype="fp32", **settings)
    config = ScoreConfig(
        model="embedded",
        data=(str(tmp_path / "out" / "generated.jsonl"),),
        out=tmp_path / "scores",
        precision="fp32",
        compute_dtype="fp32",
    )
    run_score(config, Silent())
    scores = {
        row["id"]: row for row in pq.read_table(tmp_path / "scores/scores.parquet").to_pylist()
    }
    whole = 0
    for record in records_in(tmp_path / "out"):
        origin, score = record["provenance"], scores[record["id"]]
        if origin["nll_sum"] is None:
            assert origin["perplexity"] is origin["eos_nll"] is None
            continue
        whole += 1
        assert origin["finish_reason"] == "eos"
        assert origin["num_tokens"] == score["num_response_tokens"]
        assert abs(origin["nll_sum"] - score["nll_sum"]) <= 1e-5 * origin["num_tokens"]
        assert origin["perplexity"] == pytest.approx(score["perplexity"], rel=1e-4)
        assert abs(origin["eos_nll"] - score["eos_nll"]) <= 1e-5
    assert whole > 2


def test_a_loss_is_kept_only_of_what_scoring_would_see(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(
        self: Generator, requests: Iterator[Request], *_: object, **__: object
    ) -> Iterator[Completion]:
        ids, _ = self._tokenizer.encode_batch(["so it is"], continuation=True)
        losses, end, begin = np.full(len(ids), -0.5), (1, -0.25), (0, -0.25)
        for number, _request in enumerate(requests):
            other = np.append(ids, ids[-1])  # not what the tokenizer makes of the text
            yield Completion(number, 0, ids, "so it is", "eos", *end, losses)
            yield Completion(number, 1, ids, "so it is", "length", logprobs=losses)
            yield Completion(number, 2, other, "so it is", "eos", *end, np.append(losses, -1))
            yield Completion(number, 3, ids, "so it is", "eos", *begin, losses)

    monkeypatch.setattr(Generator, "generate", some)
    rows = [{"id": "short", "prompt": "one?\n"}, {"id": "long", "prompt": "x" * 500 + "one?\n"}]
    file = write(tmp_path / "q.jsonl", rows)
    generate(tiny_model, file, tmp_path / "out", samples=4, on_long="cut-prompt")
    found = {record["id"]: record["provenance"] for record in records_in(tmp_path / "out")}

    def known(loss: str) -> list[str]:
        return [name for name, origin in found.items() if origin[loss] is not None]

    assert known("nll_sum") == ["short#0", "short#3"]
    # What ends a turn is one token here, and sample 3 ended with another.
    assert known("eos_nll") == ["short#0"]
    assert found["short#0"]["eos_nll"] == 0.25
    short = found["short#0"]
    assert short["nll_sum"] == 0.5 * short["num_tokens"]
    assert short["perplexity"] == pytest.approx(math.exp(0.5))

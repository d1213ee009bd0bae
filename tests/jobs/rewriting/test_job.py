from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fam_engine.config import RewriteConfig
from fam_engine.data.reading import read_rows
from fam_engine.data.records import Record, detect_form, read_record
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.rewriting.forecast import forecast_rewrite
from fam_engine.jobs.rewriting.job import run_rewrite
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.requests import Completion, Request, Sampling

Row = dict[str, Any]
# What a model writes, from its prompt and how it is to choose: text and finish reason.
Script = Callable[[str, Sampling], tuple[str, Any]]

EGGS = "16 - 7 = 9 eggs.\n9 * 2 = 18.\n#### 18"


class Silent:
    """Nobody to tell about progress."""

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, count: int, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def roomy_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with positions enough for worked examples."""
    folder = tmp_path / "roomy"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return folder


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], None]:
    """Put a script in the place of the model's writing."""

    def use(script: Script) -> None:
        class Scripted:
            def __init__(self, _: Decoder, encoder: TextEncoder, *, max_slots: int) -> None:
                self._tokenizer = encoder.tokenizer
                self.max_slots = max_slots

            def generate(
                self,
                requests: Iterable[Request],
                sampling: Sampling,
                *,
                on_step: Any,  # noqa: ANN401
            ) -> Iterator[Completion]:
                for number, request in enumerate(requests):
                    text, reason = script(self._tokenizer.decode(request.context_ids), sampling)
                    on_step(1)
                    yield Completion(number, 0, np.arange(3, dtype=np.int32), text, reason)

        monkeypatch.setattr("fam_engine.jobs.rewriting.job.Generator", Scripted)

    return use


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rewrite(
    model: Path,
    data: Path | list[Path],
    out: Path,
    *,
    progress: Silent | None = None,
    **settings: Any,  # noqa: ANN401
) -> JobOutcome:
    files = data if isinstance(data, list) else [data]
    settings = {"precision": "fp32", "device": "cpu", **settings}
    config = RewriteConfig(
        model=str(model), data=tuple(map(str, files)), out=out, samples=3, **settings
    )
    return run_rewrite(config, progress or Silent())


def written(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "rewritten.jsonl").read_text().splitlines()]


def candidates(out: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(out / "candidates.parquet").to_pylist()
    return rows


def egg_row(name: str, **more: object) -> Row:
    return {"id": name, "prompt": f"{name}: eggs?\n", "response": EGGS, "source": "human", **more}


def test_a_record_gets_its_first_verified_text_or_keeps_its_answer(
    scripted: Callable[[Script], None], roomy_model: Path, tmp_path: Path
) -> None:
    rows = [
        egg_row("at-once", answer="18"),
        egg_row("later"),
        egg_row("never", correct=True),
        egg_row("leaky", source="model"),
        egg_row("essay", response="Nobody knows how many.\nTime will tell us, or perhaps not."),
    ]
    data = write(tmp_path / "data.jsonl", rows)
    data.write_text(data.read_text() + "not json\n")
    asked: list[tuple[str, float]] = []

    def script(prompt: str, sampling: Sampling) -> tuple[str, str]:
        name = prompt[: prompt.rindex(": eggs?")].rsplit("\n", 1)[-1]
        asked.append((name, sampling.temperature))
        assert EGGS in prompt
        right, wrong = " Nine eggs at two each make 18.\n", "Nine eggs make 27 of something."
        if name == "leaky":
            return f"As in the reference answer. {right}", "eos"
        is_right = name == "at-once" or (name == "later" and sampling.temperature > 0)
        return right if is_right else wrong, "stop"

    scripted(script)
    outcome = rewrite(roomy_model, data, tmp_path / "out")

    # The first attempt is greedy; only what is not verified is asked again; an essay never.
    assert asked[:4] == [(name, 0.0) for name in ("at-once", "later", "never", "leaky")]
    assert asked[4:7] == [(name, 0.7) for name in ("later", "never", "leaky")]
    assert asked[7:] == [(name, 0.7) for name in ("never", "leaky")]

    new = "Nine eggs at two each make 18."
    records = written(tmp_path / "out")
    assert [record["response"] for record in records] == [
        *(new, new, EGGS, EGGS),
        rows[4]["response"],
    ]
    assert [record["id"] for record in records] == [f"{row['id']}#rewrite" for row in rows]
    assert [record["source"] for record in records][2:4] == ["human#rewrite", "model#rewrite"]
    assert [record.get("correct") for record in records] == [True, None, True, None, None]
    told = [record["provenance"] for record in records]
    assert [one["attempt"] for one in told] == [0, 1, None, None, None]
    assert [one["fell_back"] for one in told] == [False, False, True, True, True]
    assert [one["verified"] for one in told] == [True, True, False, False, False]
    assert [one.get("reason") for one in told] == [
        *(None, None, "wrong_answer", "mentions_reference", "no_reference"),
    ]
    assert [one["parent"] for one in told] == [row["id"] for row in rows]
    assert told[0]["method"] == "rewrite"

    summary = outcome.summary
    assert summary["records"] == {
        "read": 6,
        "rewritten": 2,
        "fell_back": 3,
        "quarantined": 1,
        "quarantined_by_code": {"E_JSON_SYNTAX": 1},
        "skipped": 0,
    }
    assert outcome.num_quarantined == 1
    assert summary["rejected"] == {"wrong_answer": 4, "mentions_reference": 3}
    assert summary["fell_back"] == {
        "mentions_reference": 1,
        "no_reference": 1,
        "wrong_answer": 1,
    }
    assert [row["verified"] for row in summary["attempts"]] == [1, 1, 0]
    assert summary["sources"]["human"]["yield"]["value"] == 0.5
    assert summary["sources"]["model"]["rewritten"] == 0
    table = candidates(tmp_path / "out")
    assert len(table) == 9
    assert [row["verified"] for row in table if row["id"] == "later"] == [False, True]
    assert table[0]["text"] == new
    assert 0 < table[0]["similarity"] < 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert not list((tmp_path / "out" / ".fam-engine").glob("attempt-*"))


def test_minimum_change_begins_with_the_models_own_answer(
    scripted: Callable[[Script], None], roomy_model: Path, tmp_path: Path
) -> None:
    names = ("right", "wrong", "endless", "stubborn")
    data = write(tmp_path / "data.jsonl", [egg_row(name) for name in names])
    own = "Nine eggs at three each make 27."
    asked: list[str] = []

    def script(prompt: str, sampling: Sampling) -> tuple[str, str]:
        name = next(name for name in names if f"{name}: eggs?" in prompt)
        if EGGS not in prompt:
            assert prompt == f"<s>{name}: eggs?\n"
            assert sampling.temperature == 0
            if name == "endless":
                return own, "length"
            return (own.replace("27", "18") if name == "right" else own), "eos"
        asked.append(name)
        assert own in prompt
        if name == "stubborn":
            return own, "eos"
        return "Nine eggs at two each make 18.", "stop"

    scripted(script)
    outcome = rewrite(roomy_model, data, tmp_path / "out", method="minimum-change")
    assert sorted(asked) == ["stubborn", "stubborn", "stubborn", "wrong"]
    told = [record["provenance"] for record in written(tmp_path / "out")]
    assert [one["attempt"] for one in told] == [0, 1, None, None]
    assert [one.get("reason") for one in told] == [None, None, "length", "wrong_answer"]
    changed = next(
        row for row in candidates(tmp_path / "out") if row["verified"] and row["attempt"]
    )
    # Two of eight words and signs.
    assert changed["own_similarity"] == 0.75
    assert changed["similarity"] < changed["own_similarity"]
    assert outcome.summary["sources"]["human"]["own_similarity"] == 0.75


@pytest.mark.parametrize(
    ("method", "shown"),
    [("explain", ["Question", "Result"]), ("answer", []), ("rewrite", ["Answer"])],
)
def test_each_method_shows_what_it_may(
    scripted: Callable[[Script], None],
    roomy_model: Path,
    tmp_path: Path,
    method: str,
    shown: list[str],
) -> None:
    data = write(tmp_path / "data.jsonl", [egg_row("a")])
    prompts: list[str] = []

    def script(prompt: str, sampling: Sampling) -> tuple[str, str]:
        prompts.append(prompt)
        assert all(f"[{name}]" in sampling.stop for name in shown)
        return "First nine eggs, then 18 coins.", "stop"

    scripted(script)
    rewrite(roomy_model, data, tmp_path / "out", method=method)
    (prompt,) = prompts
    assert "a: eggs?" in prompt
    assert (EGGS in prompt) == (method == "rewrite")
    assert ("[Result]\n18\n" in prompt) == (method == "explain")


def test_with_a_chat_template_the_prompt_is_one_users_turn(
    scripted: Callable[[Script], None], roomy_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = FORMS[4]
    prompts: list[str] = []

    def script(prompt: str, _: Sampling) -> tuple[str, str]:
        prompts.append(prompt)
        return "Nine eggs at two each make 18.", "eos"

    scripted(script)
    data = write(tmp_path / "data.jsonl", [row])
    rewrite(roomy_model, data, tmp_path / "out", template=str(template))
    (prompt,) = prompts
    assert prompt.startswith("<user>Below are questions")
    assert "[Question]\nsystem: Count.\nuser: How many?\n\n[Answer]\n16 - 7" in prompt
    assert prompt.endswith("\n[The same in your words]</s><assistant>")


FORMS: list[Row] = [
    {"prompt": "How many?\n", "response": EGGS},
    {"prompt": "How many?", "completion": EGGS, "choices": None},
    {"question": "How many?", "answer": EGGS, "group": "g"},
    {"instruction": "Count.", "input": "eggs", "output": EGGS},
    {
        "messages": [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": EGGS},
        ]
    },
    {"conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": EGGS}]},
]


def read_back(path: Path) -> Record:
    (row,) = read_rows(path)
    assert row.columns is not None
    form = detect_form(row.columns)
    return read_record(row.columns, form, file="f", line=1, stem="s")


@pytest.mark.parametrize("row", FORMS, ids=lambda row: next(iter(row)))
def test_what_is_written_asks_what_the_record_asked(
    scripted: Callable[[Script], None], roomy_model: Path, tmp_path: Path, row: Row
) -> None:
    scripted(lambda *_: ("Nine eggs at two each make 18.", "eos"))
    data = write(tmp_path / "data.jsonl", [row])
    rewrite(roomy_model, data, tmp_path / "out", method="answer")
    before, after = read_back(data), read_back(tmp_path / "out" / "rewritten.jsonl")
    assert after.response == "Nine eggs at two each make 18."
    assert (after.context, after.verbatim) == (before.context, before.verbatim)
    assert after.group == before.group
    assert after.id == f"{data}:1#answer"
    assert after.source == "data#answer"


def test_files_of_different_forms_are_refused(roomy_model: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [FORMS[0]])
    second = write(tmp_path / "second.jsonl", [FORMS[2]])
    with pytest.raises(InputError, match="E_RECORD_FORM") as error:
        rewrite(roomy_model, [first, second], tmp_path / "out")
    assert error.value.where == str(second)


def test_a_record_that_memory_does_not_hold_keeps_its_answer(
    scripted: Callable[[Script], None], roomy_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", [egg_row("small"), egg_row("huge")])

    def script(prompt: str, _: Sampling) -> tuple[str, str]:
        if "huge: eggs?" in prompt:
            raise torch.OutOfMemoryError
        return "Nine eggs at two each make 18.", "eos"

    scripted(script)
    outcome = rewrite(roomy_model, data, tmp_path / "out", max_slots=2)
    assert outcome.summary["records"]["rewritten"] == 1
    assert outcome.summary["fell_back"] == {"crash": 1}
    assert outcome.num_quarantined == 0


# -- with a model that writes ----------------------------------------------------------------------


def test_a_prompt_longer_than_the_model_is_not_asked(tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [egg_row("a")])
    outcome = rewrite(tiny_model, data, tmp_path / "out")
    assert outcome.summary["fell_back"] == {"prompt": 1}
    assert "the model takes 256" in candidates(tmp_path / "out")[0]["detail"]
    assert written(tmp_path / "out")[0]["response"] == EGGS


@pytest.fixture
def short_prompt(tmp_path: Path) -> Path:
    file = tmp_path / "prompt.txt"
    file.write_text("[Q]\n{{question}}\n[A]\n{{response}}\n[Again]\n")
    return file


def texts_of(out: Path, name: str) -> list[tuple[int, str]]:
    return [(row["attempt"], row["text"]) for row in candidates(out) if row["id"] == name]


def test_a_record_gets_the_same_texts_in_any_company(
    tiny_model: Path, tmp_path: Path, short_prompt: Path
) -> None:
    settings: Row = {"prompt_file": short_prompt, "max_new_tokens": 24, "temperature": 1.0}
    rows = [egg_row(f"r{number}" * (number + 1)) for number in range(5)]
    alone, many = tmp_path / "alone", tmp_path / "many"
    rewrite(tiny_model, write(tmp_path / "one.jsonl", rows[3:4]), alone, **settings)
    rewrite(tiny_model, write(tmp_path / "all.jsonl", rows), many, max_slots=3, **settings)
    name = rows[3]["id"]
    assert texts_of(alone, name) == texts_of(many, name)
    texts = [text for _, text in texts_of(many, name)]
    assert len(set(texts)) == 3  # an attempt is no repetition of the one before


class Stops(Silent):
    """Asks the job to stop after so many calls."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def advance(self, count: int, detail: str = "") -> None:
        self._left -= 1
        if self._left < 0:
            raise Interrupted(2)


def test_a_job_that_is_stopped_again_and_again_ends_in_the_same_files(
    tiny_model: Path, tmp_path: Path, short_prompt: Path
) -> None:
    settings: Row = {
        "method": "minimum-change",
        "max_new_tokens": 12,
        "prompt_file": tmp_path / "change.txt",
    }
    (tmp_path / "change.txt").write_text("{{question}}\n{{attempt}}\n{{response}}\n")
    data = write(tmp_path / "data.jsonl", [egg_row(f"r{number}") for number in range(4)])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rewrite(tiny_model, data, whole, **settings)
    stops = 0
    for calls in (0, 2, 9, 16, 1000):
        try:
            rewrite(tiny_model, data, parts, progress=Stops(calls), **settings)
        except Interrupted:
            stops += 1
    assert stops >= 3
    for name in ("rewritten.jsonl", "candidates.parquet", "quarantine.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # A finished job is not done again, another one not mixed in.
    again = rewrite(tiny_model, data, parts, progress=Stops(0), **settings)
    assert again.summary["records"]["read"] == 4
    (tmp_path / "change.txt").write_text("Now: {{question}}\n{{attempt}}\n{{response}}\n")
    with pytest.raises(UsageError, match="prompt_sha256"):
        rewrite(tiny_model, data, parts, **settings)


def test_a_dry_run_shows_a_prompt_and_counts(
    tiny_model: Path, tmp_path: Path, short_prompt: Path
) -> None:
    rows = [
        egg_row("a", answer="18"),
        egg_row("b"),
        egg_row("c", response="No idea at all, and no more words."),
    ]
    data = write(tmp_path / "data.jsonl", rows)
    config = RewriteConfig(
        model=str(tiny_model),
        data=(str(data),),
        out=tmp_path / "out",
        prompt_file=short_prompt,
        samples=3,
        max_new_tokens=200,
        device="cpu",
    )
    forecast = forecast_rewrite(config, Silent())
    assert forecast.prompt == f"<s>[Q]\na: eggs?\n[A]\n{EGGS}\n[Again]\n"
    assert (forecast.num_records, forecast.gold, forecast.unverifiable) == (3, 1, 1)
    assert forecast.candidates == (2, 6)
    assert forecast.tokens == (400, 1200)
    assert forecast.prompt_tokens["max"] == len(forecast.prompt) - 2  # `<s>` is one token
    assert forecast.cramped == 2
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_answers_for_itself(tmp_path: Path) -> None:
    config = RewriteConfig(
        model="embedded",
        data=("embedded",),
        out=tmp_path / "out",
        method="answer",
        samples=2,
        max_new_tokens=96,
        limit=10,
        device="cpu",
    )
    summary = run_rewrite(config, Silent()).summary
    records = written(tmp_path / "out")
    assert len(records) == 10
    # Expect little of 2 M parameters; every text is counted all the same.
    made = [row["candidates"] for row in summary["attempts"]]
    assert made[0] == 10
    assert made[1] == 10 - summary["attempts"][0]["verified"]
    assert sum(made) == sum(summary["rejected"].values()) + summary["records"]["rewritten"]
    # Five answers to one question are five records: the model's own answer is one, judged against each.
    first = {row["text"] for row in candidates(tmp_path / "out") if row["attempt"] == 0}
    assert len(first) == 2

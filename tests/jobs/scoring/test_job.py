from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fam_engine.config import ScoreConfig
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.scoring import entries as pass_two
from fam_engine.jobs.scoring.forecast import forecast_score
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.scorer import Scorer
from fam_engine.measure.results import TokenFacts


class Silent:
    """Nobody to tell about progress."""

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, text: str) -> None: ...


WORDS = [
    "one",
    "two",
    "three",
    "apples",
    "pears",
    "more",
    "less",
    "and",
    "then",
    "so",
    "is",
    "was",
    "left",
    "right",
]


def make_records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of two sources; every prompt has an answer of both."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    records = []
    for number in range(count // 2):
        prompt = f"{text(2, 8)}?\n"
        for source in ("human", "model"):
            records.append(
                {
                    "id": f"{number}-{source}",
                    "prompt": prompt,
                    "response": text(1, 14),
                    "source": source,
                    "correct": rng.random() < 0.5,
                }
            )
    return records


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def score(model: Path, data: Path, out: Path, **settings: Any) -> JobOutcome:  # noqa: ANN401
    settings = {"precision": "fp32", "device": "cpu", **settings}
    return run_score(
        ScoreConfig(model=str(model), data=(str(data),), out=out, **settings), Silent()
    )


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "scores.parquet").to_pylist()
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", make_records(24))


def test_every_record_has_a_row_in_input_order(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    outcome = score(tiny_model, data, tmp_path / "out")
    records, rows = make_records(24), table(tmp_path / "out")
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    assert [row["line"] for row in rows] == list(range(1, 25))
    assert [row["num_bytes"] for row in rows] == [len(r["response"]) for r in records]
    # A token is a byte here, so both counts are known by hand.
    assert [row["num_response_tokens"] for row in rows] == [len(r["response"]) for r in records]
    assert [row["num_prompt_tokens"] for row in rows] == [len(r["prompt"]) + 1 for r in records]
    for row in rows:
        assert row["perplexity"] == pytest.approx(np.exp(row["nll_mean"]))
        assert row["nll_mean"] == pytest.approx(row["nll_sum"] / row["num_response_tokens"])
        assert row["bits_per_byte"] == pytest.approx(row["nll_mean"] / np.log(2))
    assert outcome.summary["records"] == {
        "read": 24,
        "scored": 24,
        "quarantined": 0,
        "quarantined_by_code": {},
        "skipped": 0,
    }
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        ".fam-engine",
        "scores.parquet",
        "summary.json",
        "report.html",
        "quarantine.jsonl",
    }


def test_scores_equal_transformers(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    score(tiny_model, data, tmp_path / "out")
    scorer = Scorer(tiny_model, precision="fp32", device="cpu")
    for row, record in zip(table(tmp_path / "out"), make_records(24), strict=True):
        prompt, response = (
            scorer._encoder.tokenizer.encode_batch([record[name]])[0].tolist()
            for name in ("prompt", "response")
        )
        ids = torch.tensor([[0, *prompt, *response, 1]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        nll = -logprobs.gather(1, ids[0, 1:, None])[len(prompt) :, 0]
        assert row["nll_sum"] == pytest.approx(float(nll[:-1].sum()), abs=5e-5 * len(nll))
        assert row["eos_nll"] == pytest.approx(float(nll[-1]), abs=5e-5)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_the_same_record_gets_the_same_bits(
    tiny_model: Path, data: Path, tmp_path: Path, precision: str
) -> None:
    score(tiny_model, data, tmp_path / "whole", precision=precision)
    expected = {row["id"]: row for row in table(tmp_path / "whole")}
    records = make_records(24)
    random.Random(1).shuffle(records)
    some = write(tmp_path / "some.jsonl", records[:9])
    score(tiny_model, some, tmp_path / "some", precision=precision, max_tokens_per_batch=128)
    one = write(tmp_path / "one.jsonl", records[3:4])
    score(tiny_model, one, tmp_path / "one", precision=precision)
    for row in [*table(tmp_path / "some"), *table(tmp_path / "one")]:
        same = {name: row[name] for name in row if name not in ("file", "line")}
        assert same == {name: expected[row["id"]][name] for name in same}


def test_bad_records_are_set_aside_with_their_place(tiny_model: Path, tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in make_records(4)]
    lines.insert(1, '{"prompt": "a", "response": "b"')
    lines.insert(3, json.dumps({"prompt": "a\n", "response": ""}))
    lines.insert(5, json.dumps({"prompt": "a\n", "response": "b" * 300}))
    lines.append(lines[0])
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    outcome = score(tiny_model, data, tmp_path / "out")
    assert outcome.num_quarantined == 3
    assert outcome.summary["records"]["read"] == 8
    text = (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8")
    quarantine = [json.loads(line) for line in text.splitlines()]
    assert [(row["line"], row["code"]) for row in quarantine] == [
        (2, "E_JSON_SYNTAX"),
        (4, "E_EMPTY_RESPONSE"),
        (6, "E_TOO_LONG"),
    ]
    assert quarantine[0]["offset"] == len(lines[0]) + 1
    # The record given twice is scored twice, and says so.
    rows = table(tmp_path / "out")
    assert [row["line"] for row in rows] == [1, 3, 5, 7, 8]
    assert [row["flags"] for row in rows] == [["duplicate_id"], [], [], [], ["duplicate_id"]]


def test_a_long_prompt_can_be_cut_but_never_a_response(tiny_model: Path, tmp_path: Path) -> None:
    records = [
        {"prompt": "x" * 400 + "end\n", "response": "b" * 20},
        {"prompt": "a\n", "response": "b" * 300},
    ]
    data = write(tmp_path / "data.jsonl", records)
    score(tiny_model, data, tmp_path / "out", on_long="cut-prompt")
    (row,) = table(tmp_path / "out")
    assert row["flags"] == ["prompt_cut"]
    # 256 positions hold the prompt and the response; the end of turn is predicted, not read.
    assert row["num_prompt_tokens"] == 256 - 20
    scorer = Scorer(tiny_model, precision="fp32", device="cpu")
    kept = scorer.token_logprobs("x" * (256 - 20 - 1 - 4) + "end\n", "b" * 20)
    assert row["nll_sum"] == pytest.approx(-kept.sum(), abs=1e-9)


def test_a_prompt_that_is_cut_stays_its_own_question(tiny_model: Path, tmp_path: Path) -> None:
    # The answers of one are cut at two places, and what is left of both prompts is the same.
    records = [
        {"prompt": f"{name}{'x' * 400}end\n", "response": "b" * num}
        for name in ("Peter", "Janet")
        for num in (20, 40)
    ]
    data = write(tmp_path / "data.jsonl", records)
    score(tiny_model, data, tmp_path / "out", on_long="cut-prompt")
    rows = table(tmp_path / "out")
    assert [row["flags"] for row in rows] == [["prompt_cut"]] * 4
    names = [row["group"] for row in rows]
    assert names[0] == names[1] != names[2] == names[3]


def test_ifd_and_in_context_follow_their_definitions(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    # These have no end of turn, so their segments are a token shorter: equal but for fp32 rounding.
    score(tiny_model, data, tmp_path / "out", ifd=True, in_context=1)
    scorer = Scorer(tiny_model, precision="fp32", device="cpu")
    records = make_records(24)
    for index, row in enumerate(table(tmp_path / "out")):
        record = records[index]
        alone = -scorer.token_logprobs("", record["response"]).mean()
        assert row["ifd"] == pytest.approx(np.exp(row["nll_mean"] - alone), rel=1e-5)
        assert row["ifd_loss_ratio"] == pytest.approx(row["nll_mean"] / alone, rel=1e-5)
        following = records[index + 1 :] + records[:index]
        example = next(r for r in following if r["correct"] and r["prompt"] != record["prompt"])
        prompt = f"{example['prompt']}{example['response']}\n\n{record['prompt']}"
        expected = -scorer.token_logprobs(prompt, record["response"]).mean()
        assert row["in_context_nll_mean"] == pytest.approx(expected, rel=1e-5)
        assert row["in_context_perplexity"] == pytest.approx(np.exp(expected), rel=1e-5)


def test_records_without_in_context_scores_are_told_of_beforehand(
    tiny_model: Path, tmp_path: Path
) -> None:
    records = [record | {"correct": index == 0} for index, record in enumerate(make_records(4))]
    data = write(tmp_path / "data.jsonl", records)
    notes: list[str] = []
    progress = Silent()
    progress.note = notes.append  # type: ignore[method-assign]
    config = ScoreConfig(
        model=str(tiny_model), data=(str(data),), out=tmp_path / "out", in_context=1
    )
    run_score(config, progress)
    (note,) = (note for note in notes if note.startswith("in-context"))
    missing = [row["in_context_nll_mean"] is None for row in table(tmp_path / "out")]
    assert f"none for {sum(missing)} of 4 records" in note
    assert "1 other questions (1 have one)" in note
    assert 0 < sum(missing) < 4


def test_token_facts_add_up_to_the_scores(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    score(tiny_model, data, tmp_path / "out", tokens=True)
    tokens = pq.read_table(tmp_path / "out" / "tokens.parquet").to_pylist()
    for row, token in zip(table(tmp_path / "out"), tokens, strict=True):
        assert token["id"] == row["id"]
        assert len(token["token_ids"]) == row["num_response_tokens"]
        assert -sum(token["logprobs"]) == pytest.approx(row["nll_sum"])
        assert np.mean(token["ranks"]) == pytest.approx(row["rank_mean"])
        assert np.mean(token["entropies"]) == pytest.approx(row["entropy_mean"])


def test_parquet_gives_the_scores_of_json_lines(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(make_records(24)), other)
    for path in (data, other):
        score(tiny_model, path, tmp_path / path.suffix)
    one, two = (table(tmp_path / path.suffix) for path in (data, other))
    for row in one + two:
        del row["file"]
    assert one == two


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    settings: dict[str, Any] = {"max_tokens_per_batch": 128, "tokens": True}
    score(tiny_model, data, tmp_path / "whole", **settings)
    whole = pass_two.EntryScorer.facts
    done: list[int] = []

    def interrupted(self: pass_two.EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        if len(done) == batches:
            raise Interrupted(15)
        done.append(len(entries))
        return whole(self, entries)

    with monkeypatch.context() as patch:
        patch.setattr(pass_two.EntryScorer, "facts", interrupted)
        with pytest.raises(Interrupted):
            score(tiny_model, data, tmp_path / "parts", **settings)
    assert not (tmp_path / "parts" / "scores.parquet").exists()
    # Another batch size on resume regroups what remains; no bit of the result may know.
    score(tiny_model, data, tmp_path / "parts", **(settings | {"max_tokens_per_batch": 320}))
    for name in ("scores.parquet", "tokens.parquet", "quarantine.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_the_template_is_told_belongs_to_the_run(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}{{ mood }}")
    calm = tmp_path / "calm.jinja"
    calm.write_text("{{ messages[0].content }} Be calm. ")
    told = {"template": str(template), "chat_template_kwargs": {"mood": " Be calm. "}}
    score(tiny_model, data, tmp_path / "out", **told)
    score(tiny_model, data, tmp_path / "same", template=str(calm))
    assert table(tmp_path / "out") == table(tmp_path / "same")
    told["chat_template_kwargs"] = {"mood": " Be loud. "}
    with pytest.raises(UsageError, match="chat_template_kwargs"):
        score(tiny_model, data, tmp_path / "out", **told)


def test_a_finished_job_is_not_repeated_and_another_one_refused(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(tiny_model, data, tmp_path / "out")
    monkeypatch.setattr(pass_two.EntryScorer, "run", None)
    assert score(tiny_model, data, tmp_path / "out") == first
    with pytest.raises(UsageError, match='precision = "fp32", this one has "bf16"'):
        score(tiny_model, data, tmp_path / "out", precision="bf16")
    template = tmp_path / "template.jinja"
    for number, text in enumerate(("{{ messages[0].content }}", "{{ messages[0].content }}!")):
        template.write_text(text)
        settings = {"template": str(template)}
        if number == 0:
            monkeypatch.undo()
            score(tiny_model, data, tmp_path / "templated", **settings)
        else:
            with pytest.raises(UsageError, match="template_sha256"):
                score(tiny_model, data, tmp_path / "templated", **settings)
    write(data, make_records(24, seed=9))
    with pytest.raises(UsageError, match="other contents of the file in data"):
        score(tiny_model, data, tmp_path / "out")


def test_running_out_of_memory_halves_batches_and_spares_the_job(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(tiny_model, data, tmp_path / "whole")
    facts = pass_two.EntryScorer.facts

    def short_of_memory(self: pass_two.EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        if len(entries) > 3 or 5 in entries:
            raise torch.OutOfMemoryError("injected")
        return facts(self, entries)

    monkeypatch.setattr(pass_two.EntryScorer, "facts", short_of_memory)
    outcome = score(tiny_model, data, tmp_path / "out")
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_OOM_RECORD": 1}
    expected = table(tmp_path / "whole")
    del expected[5]
    assert table(tmp_path / "out") == expected


def test_a_record_with_nothing_to_predict_is_put_aside(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    # Neither a BOS to stand before the only token, nor an EOS to end the turn.
    (model / "tokenizer_config.json").write_text("{}")
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": None}
    (model / "config.json").write_text(json.dumps(config))
    rows = [{"prompt": "", "response": text} for text in ("a", "ab")]
    data = write(tmp_path / "data.jsonl", rows)
    outcome = score(model, data, tmp_path / "out")
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_EMPTY_TOKENS": 1}
    (row,) = table(tmp_path / "out")
    assert row["num_response_tokens"] == 1
    assert row["flags"] == ["first_token_unscored"]


def test_a_score_that_is_no_number_is_never_written(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = pass_two.EntryScorer.facts

    def poisoned(self: pass_two.EntryScorer, entries: pass_two.Entries) -> list[TokenFacts]:
        found = facts(self, entries)
        for entry, one in zip(entries, found, strict=True):
            if entry == 7:
                one.logprobs[0] = np.nan
        return found

    monkeypatch.setattr(pass_two.EntryScorer, "facts", poisoned)
    outcome = score(tiny_model, data, tmp_path / "out")
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_NONFINITE": 1}
    assert "3-model" not in [row["id"] for row in table(tmp_path / "out")]
    assert outcome.summary["records"]["scored"] == 23


def test_unusable_input_is_an_error_that_names_the_first_fault(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("")
    with pytest.raises(InputError, match="no records"):
        score(tiny_model, data, tmp_path / "empty")
    data.write_text('\n{"text": "a"}\n')
    with pytest.raises(InputError, match=r"data\.jsonl:2.*`text`"):
        score(tiny_model, data, tmp_path / "text")


def test_a_forecast_counts_what_the_job_then_does(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = ScoreConfig(
        model=str(tiny_model), data=(str(data),), out=tmp_path / "out", precision="fp32"
    )
    forecast = forecast_score(config, Silent())
    assert not (tmp_path / "out").exists()
    records = make_records(24)
    assert forecast.num_records == 24
    assert forecast.tokens["response"] == sum(len(r["response"]) + 1 for r in records)
    # Two answers a prompt: half the prompt tokens need no computing.
    prompts = sum(len(r["prompt"]) + 1 for r in records)
    saved = forecast.tokens["without_sharing"] - forecast.tokens["computed"]
    assert saved == prompts // 2
    assert forecast.seconds > 0
    assert forecast.memory_bytes > 0
    assert len(forecast.longest) == 5
    assert forecast.lengths["response"]["max"] == max(len(r["response"]) + 1 for r in records)
    # Scores beside those of the records take more computing, and are no other records.
    more = forecast_score(config.model_copy(update={"ifd": True, "in_context": 1}), Silent())
    assert more.lengths == forecast.lengths
    assert more.tokens["response"] == forecast.tokens["response"]
    assert more.tokens["computed"] > 2 * forecast.tokens["computed"]


def test_limit_reads_no_further(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    score(tiny_model, data, tmp_path / "out", limit=5)
    assert len(table(tmp_path / "out")) == 5

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fam_engine.data.packing import Entries
from fam_engine.errors import (
    CorruptStateError,
    DeviceError,
    DivergedError,
    InputError,
    UsageError,
)
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.status.job import read_status
from fam_engine.jobs.training import budget, loop, steps, validation
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.checkpoints import Checkpoints
from fam_engine.jobs.training.loop import TrainingLoop
from fam_engine.jobs.training.steps import GradientMaker, StepLoss
from fam_engine.model.training.recomputation import CONSTANT_BYTES
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes, make_records, read_lines, write_records

ADAPTER = "adapter/adapter_model.safetensors"


def steps_of(out: Path) -> list[dict[str, Any]]:
    """Give the log without what may differ: the time a step took."""
    return [
        {n: v for n, v in line.items() if n != "seconds"} for line in read_lines(out / "log.jsonl")
    ]


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise an error in place of a step's (from 0) gradients."""
    real = GradientMaker.step

    def stopped(
        self: GradientMaker, number: int, entries: Entries, plan: StepPlan
    ) -> tuple[StepLoss, StepPlan]:
        if number == step:
            raise error
        return real(self, number, entries, plan)

    monkeypatch.setattr(GradientMaker, "step", stopped)


def test_settings_that_are_refused_can_be_mended_in_the_same_folder(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each only after all records were read."""
    with pytest.raises(UsageError, match="E_LORA"):
        train(target_modules=("query",))
    with monkeypatch.context() as patch:
        patch.setattr(budget, "free_bytes", lambda _: 1 << 10)
        with pytest.raises(DeviceError, match="E_MEMORY_PLAN"):
            train(rank=3)
    assert train().summary["training"]["steps"] == 7


def test_a_job_leaves_an_adapter_a_log_and_a_summary(
    train: Train, settings: dict[str, Any]
) -> None:
    outcome = train()
    out = settings["out"]
    assert {path.name for path in out.iterdir()} == {
        ".fam-engine",
        "adapter",
        "checkpoints",
        "log.jsonl",
        "quarantine.jsonl",
        "summary.json",
    }
    lines = read_lines(out / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    for line in lines:
        assert set(line) >= {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "seconds"}
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
    # 12 records, 4 a step: every record in steps 1 to 3, and again in 4 to 6.
    an_epoch = sum(len(r["response"]) + 1 for r in make_records(12))
    assert sum(line["tokens"] for line in lines[:3]) == an_epoch
    assert sum(line["tokens"] for line in lines[3:6]) == an_epoch
    assert lines[2]["epoch"] == 1.0
    assert lines[-1]["nll"] < lines[0]["nll"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary == outcome.summary
    assert summary["examples"] == {
        "read": 12,
        "trained": 12,
        "validation": 0,
        "quarantined": 0,
        "quarantined_by_code": {},
        "skipped": 0,
    }
    assert summary["sources"] == {"human": 6, "model": 6}
    assert summary["training"]["tokens"] == sum(line["tokens"] for line in lines)


# PEFT asks transformers by a name that is on its way out.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_adapter_is_one_that_peft_loads(train: Train, settings: dict[str, Any]) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    adapter = train(steps=2).adapter
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "fam_engine.json",
    }
    base = AutoModelForCausalLM.from_pretrained(settings["model"])
    loaded = peft.PeftModel.from_pretrained(base, adapter)
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8, 0.1)
    card = (adapter / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "| learning_rate | 0.01 |" in card
    assert str(settings["out"]) not in card
    metadata = (adapter / "fam_engine.json").read_text()
    assert json.loads(metadata)["settings"]["rank"] == 2
    assert str(settings["out"].parent) not in metadata


@pytest.mark.parametrize(
    ("optimizer", "stops"),
    [("adamw", (0,)), ("adamw", (1,)), ("adamw", (3, 5, 6)), ("adamw8bit", (2, 4))],
)
def test_an_interrupted_job_goes_on_and_ends_in_the_same_bits(
    train: Train,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    stops: tuple[int, ...],
) -> None:
    changes = {"optimizer": optimizer, "loss": "stm", "validation_share": 0.2, "save_every": 2}
    # Ranks that give some parameters 8-bit moments and others, too small for them, fp32 ones.
    changes["rank"] = 40
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(out=whole, **changes)
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_before(patch, stop, Interrupted(15))
            with pytest.raises(Interrupted):
                train(out=parts, **changes)
        assert not (parts / "adapter").exists()
    train(out=parts, **changes)
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "fam_engine.json",
        "README.md",
    ):
        assert (parts / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    assert steps_of(parts) == steps_of(whole)


def test_a_job_killed_between_checkpoints_repeats_the_steps_since(
    train: Train, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(out=tmp_path / "whole", save_every=3)
    with monkeypatch.context() as patch:
        # Unlike a signal, this leaves no checkpoint of the moment.
        stop_before(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(save_every=3)
    assert [path.name for path in (settings["out"] / "checkpoints").iterdir()] == ["step-3"]
    assert len(read_lines(settings["out"] / "log.jsonl")) == 5
    train(save_every=3)
    assert (settings["out"] / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert steps_of(settings["out"]) == steps_of(tmp_path / "whole")


def test_a_job_goes_on_to_the_same_bits_where_less_memory_is_free(
    train: Train,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notes: Notes,
) -> None:
    """Fewer layers keep their activations there; the token budget, by then kept, is the same."""
    changes: dict[str, Any] = {"save_every": 2, "max_tokens_per_batch": None}
    whole = train(out=tmp_path / "whole", **changes).summary["performance"]["memory_plan"]
    with monkeypatch.context() as patch:
        stop_before(patch, 3, Interrupted(15))
        with pytest.raises(Interrupted):
            train(**changes)
    # What is needed without one layer kept, and half of one layer: of the room a plan takes half.
    plan = budget.MemoryPlan(**whole)
    least = replace(plan, activations=0).total + 2 * plan.activations
    needs = plan.activations - CONSTANT_BYTES
    monkeypatch.setattr(budget, "free_bytes", lambda _: least - needs // 2)
    again = train(**changes).summary["performance"]["memory_plan"]
    assert (whole["num_whole"], again["num_whole"]) == (2, 1)
    assert whole["max_tokens"] == again["max_tokens"] == 2048
    assert "; 1 of 2 layers keep theirs" in "".join(notes.notes)
    assert (settings["out"] / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert steps_of(settings["out"]) == steps_of(tmp_path / "whole")


def test_memory_that_runs_out_is_told(
    train: Train,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notes: Notes,
) -> None:
    train(out=tmp_path / "whole")
    real = GradientMaker._try

    def short(
        self: GradientMaker, step: int, entries: Entries, batches: list[Entries], plan: StepPlan
    ) -> StepLoss | steps._Shortage:
        if step == 2 and plan.room > 0:
            return steps._Shortage(is_of_host=False, num_bytes=1)
        return real(self, step, entries, batches, plan)

    monkeypatch.setattr(GradientMaker, "_try", short)
    train()
    told = (
        "memory ran out: from here on 64 tokens a batch, and 0.00 GiB for what layers keep of one"
    )
    assert notes.notes.count(told) == 1
    assert (settings["out"] / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_a_finished_job_is_not_repeated_and_another_one_refused(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    first = train(steps=2)
    monkeypatch.setattr(TrainingLoop, "run", None)
    assert train(steps=2, save_every=1).summary == first.summary
    assert "is complete already" in notes.notes[-1]
    with pytest.raises(UsageError, match="steps = 2, this one has 3"):
        train(steps=3)
    with pytest.raises(UsageError, match="dropout"):
        train(steps=2, dropout=0.2)


def test_the_seed_reaches_first_values_order_and_dropout(train: Train, tmp_path: Path) -> None:
    same = [train(out=tmp_path / f"same-{n}", steps=2).adapter for n in range(2)]
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in same)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = load_file(
        train(out=tmp_path / "other", steps=2, seed=1).adapter / "adapter_model.safetensors"
    )
    assert all(not torch.equal(one[name], other[name]) for name in one)
    # With the first values and dropout out of the way the order still makes a difference.
    tokens = [
        [line["tokens"] for line in read_lines(tmp_path / name / "log.jsonl")]
        for name in ("same-0", "other")
    ]
    assert tokens[0] != tokens[1]


def test_the_best_of_the_validations_is_the_adapter(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 3.3, 2.0])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(losses))
    outcome = train(validation_share=0.3, validate_every=1, patience=3, save_every=1)
    # Best after step 2; 3, 4 and 5 are no better, and patience ends there.
    assert outcome.summary["training"]["steps"] == 5
    assert outcome.summary["training"]["stopped_early"] is True
    validation = outcome.summary["validation"]
    assert validation == {"before": 5.0, "best": 3.0, "best_step": 2, "last": 3.1}
    kept = {path.name for path in (settings["out"] / "checkpoints").iterdir()}
    assert kept == {"step-2", "step-4", "step-5"}
    best = settings["out"] / "checkpoints" / "step-2" / "adapter_model.safetensors"
    assert best.read_bytes() == (settings["out"] / ADAPTER).read_bytes()


def test_patience_begins_with_the_untrained_model(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 5.0, 4.0])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(losses))
    changes = {"validation_share": 0.3, "validate_every": 1, "patience": 2, "save_every": 1}
    with monkeypatch.context() as patch:
        stop_before(patch, 1, Interrupted(15))
        with pytest.raises(Interrupted):
            train(**changes)
    outcome = train(**changes)
    assert outcome.summary["training"]["steps"] == 2
    # The best there is of those that were trained.
    assert outcome.summary["validation"] == {
        "before": 3.0,
        "best": 4.0,
        "best_step": 2,
        "last": 4.0,
    }
    assert "Validation never improved on the untrained model." in outcome.summary["remarks"]


def test_patience_that_ran_out_stays_so_after_a_crash(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(losses))
    changes = {"validation_share": 0.3, "validate_every": 1, "patience": 1}
    with monkeypatch.context() as patch:
        patch.setattr("fam_engine.jobs.training.job._write_outputs", None)
        with pytest.raises(TypeError):
            train(**changes)
    outcome = train(**changes)
    assert outcome.summary["training"]["steps"] == 2


def test_validation_by_a_file_of_its_own(
    train: Train, settings: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    # Two questions of six are trained on as well; one line is broken.
    other = write_records(tmp_path / "other.jsonl", make_records(8, seed=1) + make_records(4))
    with other.open("a") as file:
        file.write("broken\n")
    outcome = train(validation=str(other), steps=3, limit=10)
    assert outcome.summary["examples"] == {
        "read": 10 + 13,
        "trained": 10,
        "validation": 12,
        "quarantined": 1,
        "quarantined_by_code": {"E_JSON_SYNTAX": 1},
        "skipped": 0,
    }
    assert "2 of 6 validation questions are also trained on" in notes.notes
    (bad,) = read_lines(settings["out"] / "quarantine.jsonl")
    assert (bad["file"], bad["line"]) == (str(other), 13)
    lines = read_lines(settings["out"] / "log.jsonl")
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 3]
    assert lines[-1]["validation_loss"] != lines[0]["validation_loss"]
    write_records(other, make_records(8, seed=2))
    with pytest.raises(UsageError, match="validation ="):
        train(validation=str(other), steps=3, limit=10)


def test_a_validation_share_that_cannot_be_reached_is_told(
    train: Train, tmp_path: Path, notes: Notes
) -> None:
    prompts = ["a\n"] * 8 + ["b\n"] * 6
    records = [{"prompt": p, "response": f"{n}"} for n, p in enumerate(prompts)]
    data = write_records(tmp_path / "two.jsonl", records)
    train(data=(str(data),), validation_share=0.1, steps=1)
    assert any("6 examples are set aside for validation where 1 were" in n for n in notes.notes)


@pytest.mark.parametrize(
    ("loss", "nll", "named"),
    [(math.nan, 1.0, "the loss is nan"), (math.inf, 1.0, "the loss is inf")],
)
def test_a_lost_run_stops_with_its_state_kept(
    train: Train,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    loss: float,
    nll: float,
    named: str,
) -> None:
    real = GradientMaker.step

    def lost(
        self: GradientMaker, step: int, entries: Entries, plan: StepPlan
    ) -> tuple[StepLoss, StepPlan]:
        found, fitted = real(self, step, entries, plan)
        return (found if step < 4 else StepLoss(loss, nll, 1.0, 9)), fitted

    monkeypatch.setattr(GradientMaker, "step", lost)
    with pytest.raises(DivergedError, match=named) as caught:
        train(save_every=2)
    assert caught.value.exit_code == 9
    out = settings["out"]
    assert not (out / "adapter").exists()
    lines = read_lines(out / "log.jsonl")
    assert named in lines[-1]["diverged"]
    kept = Checkpoints(out / "checkpoints", _run_of(out)).latest(pytest.fail)
    assert kept is not None
    assert kept.state.step == 4
    assert all(value.isfinite().all() for value in kept.parameters.values())


@pytest.mark.parametrize("lost_at", [0, 2, 3])
def test_a_run_that_is_lost_in_validation_says_so(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lost_at: int
) -> None:
    """At its first validation, at a step, and when the same command goes on from the checkpoint before."""
    losses = [5.0] * lost_at + [math.nan] * 2
    monkeypatch.setattr(loop, "validation_loss", lambda *_: losses.pop(0))
    for _ in range(2):
        with pytest.raises(DivergedError, match="validation loss is nan"):
            train(validation_share=0.3, validate_every=1, save_every=1)
        *before, last = read_lines(settings["out"] / "log.jsonl")
        assert "validation loss is nan" in last["diverged"]
        assert "validation_loss" not in last
        assert [line["step"] for line in (*before, last)] == list(range(lost_at + 1))
        assert read_status(settings["out"]).state == "diverged"


def test_parameters_that_are_no_numbers_are_not_saved(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"learning_rate": 1e38, "schedule": "constant", "warmup": 0.0}
    out = settings["out"]
    with pytest.raises(DivergedError, match=r"step 1: the largest parameter is nan"):
        train(steps=1, **changes)
    assert not (out / "adapter").exists()
    assert "largest parameter" in read_lines(out / "log.jsonl")[-1]["diverged"]
    assert read_status(out).state == "diverged"
    stop_before(monkeypatch, 1, Interrupted(15))
    with pytest.raises(Interrupted):
        train(out=out.parent / "stopped", steps=3, **changes)
    for folder in (out, out.parent / "stopped"):
        assert not list((folder / "checkpoints").iterdir())


def test_a_first_answer_that_is_easy_does_not_end_a_run(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step, means = GradientMaker.step, []

    def step(
        self: GradientMaker, number: int, entries: Entries, plan: StepPlan
    ) -> tuple[StepLoss, StepPlan]:
        found, fitted = real_step(self, number, entries, plan)
        return (replace(found, nll=0.01) if number == 0 else found), fitted

    def untrained_loss(*given: Any) -> float:  # noqa: ANN401 - passed on
        means.append(validation.untrained_loss(*given))
        return means[-1]

    monkeypatch.setattr(GradientMaker, "step", step)
    monkeypatch.setattr(loop, "untrained_loss", untrained_loss)
    train(learning_rate=1e-12, batch_size=1, steps=21, dropout=0.0)
    lines = read_lines(settings["out"] / "log.jsonl")
    assert means[1:20] == pytest.approx([line["nll"] for line in lines[1:20]], rel=1e-6)


def test_a_rate_far_too_high_really_diverges(train: Train) -> None:
    with pytest.raises(DivergedError):
        train(learning_rate=1e4, steps=60, schedule="constant", warmup=0.0, dropout=0.0)


def _run_of(out: Path) -> str:
    manifest = json.loads((out / "checkpoints" / "step-4" / "manifest.json").read_text())
    run: str = manifest["body"]["run"]
    return run


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    train: Train,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notes: Notes,
) -> None:
    train(out=tmp_path / "whole", save_every=2)
    with monkeypatch.context() as patch:
        stop_before(patch, 5, Interrupted(2))
        with pytest.raises(Interrupted):
            train(save_every=2)
    newest = settings["out"] / "checkpoints" / "step-5" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    train(save_every=2)
    assert any("step-5" in note and "damaged" in note for note in notes.notes)
    assert (settings["out"] / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    for folder in (settings["out"] / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    (settings["out"] / "summary.json").unlink()
    with pytest.raises(CorruptStateError, match="not one checkpoint"):
        train(save_every=2)


def test_all_turns_of_the_assistant(train: Train, settings: dict[str, Any], tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "dddd"},
    ]
    data = write_records(tmp_path / "chat.jsonl", [{"messages": turns}] * 4)
    for choice, trained, tokens in (("last", 4, 5), ("all-assistant", 8, 3 + 5)):
        outcome = train(
            data=(str(data),), out=tmp_path / choice, train_on=choice, batch_size=8, steps=1
        )
        assert outcome.summary["examples"]["trained"] == trained
        (line,) = read_lines(tmp_path / choice / "log.jsonl")
        assert line["tokens"] == 4 * tokens


def test_turns_of_weight_0_are_not_learnt(train: Train, tmp_path: Path) -> None:
    def conversation(*answers: tuple[str, int]) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for content, weight in answers:
            turns.append({"role": "user", "content": "a"})
            turns.append({"role": "assistant", "content": content, "weight": weight})
        return {"messages": turns}

    rows = [
        conversation(("bb", 1), ("dddd", 1)),
        conversation(("bb", 0), ("dddd", 1)),
        conversation(("bb", 1), ("dddd", 0)),
        conversation(("bb", 0)),
        {"messages": [*conversation(("bb", 1))["messages"], {"role": "user", "content": "c"}]},
    ]
    data = write_records(tmp_path / "chat.jsonl", rows)
    for choice, lengths, aside in (
        ("last", [5, 5], {"E_NO_TARGETS": 2, "E_RECORD_ROLE": 1}),
        ("all-assistant", [3, 5, 5, 3, 3], {"E_NO_TARGETS": 1}),
    ):
        outcome = train(
            data=(str(data),), out=tmp_path / choice, train_on=choice, batch_size=8, steps=1
        )
        examples = outcome.summary["examples"]
        assert (examples["trained"], examples["quarantined_by_code"]) == (len(lengths), aside)
        (line,) = read_lines(tmp_path / choice / "log.jsonl")
        assert line["tokens"] == sum(lengths)


def test_what_would_train_nothing_or_wrongly_is_refused(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    long = write_records(tmp_path / "long.jsonl", [{"prompt": "a\n", "response": "b" * 300}] * 3)
    with pytest.raises(InputError, match=r"not one record is usable.*E_TOO_LONG"):
        train(data=(str(long),), out=tmp_path / "long")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("broken\n")
    with pytest.raises(InputError, match=r"not one record is usable.*E_JSON_SYNTAX"):
        train(data=(str(broken),), out=tmp_path / "broken")
    # A model whose tokenizer names no end: it would learn to talk and never to stop.
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": true}')
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": None}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"E_NO_END_OF_TURN.*never learn to stop"):
        train(model=str(model), out=tmp_path / "endless")
    # Neither BOS nor end of turn: answers of one token leave nothing to predict.
    (model / "tokenizer_config.json").write_text("{}")
    single = write_records(tmp_path / "single.jsonl", [{"prompt": "", "response": "b"}] * 3)
    with pytest.raises(InputError, match=r"not one record is usable.*E_EMPTY_TOKENS"):
        train(model=str(model), data=(str(single),), out=tmp_path / "nothing")


def test_cut_prompts_are_counted(train: Train, tmp_path: Path) -> None:
    records = [{"prompt": "x" * 300 + "\n", "response": "yes"}, {"prompt": "a\n", "response": "no"}]
    data = write_records(tmp_path / "cut.jsonl", records)
    outcome = train(data=(str(data),), out=tmp_path / "cut", on_long="cut-prompt", steps=1)
    assert outcome.summary["flags"] == {"prompt_cut": 1}
    assert "1 prompts were cut to fit." in outcome.summary["remarks"]


def test_only_what_the_run_itself_writes_is_a_storage_error(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before(monkeypatch, 2, OSError(5, "Input/output error", "elsewhere"))
    with pytest.raises(OSError, match="elsewhere"):
        train()

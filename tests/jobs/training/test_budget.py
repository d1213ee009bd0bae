"""What training takes and what a run makes of it: from shapes, for machines and cards that are not here."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.config import TrainConfig
from fam_engine.errors import DeviceError
from fam_engine.jobs.training import budget
from fam_engine.jobs.training.budget import (
    MemoryNeeds,
    MemoryPlan,
    StepPlan,
    check_memory,
    describe_plan,
    host_share,
    least_plan,
    memory_needs,
    plan_for,
    process_share,
)
from fam_engine.jobs.training.cards import CardPlan, plan_cards
from fam_engine.jobs.training.forecast import forecast_train
from fam_engine.jobs.training.job import lora_spec
from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import load_model
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import Policy, TrainableModel
from fam_engine.model.training.recomputation import CONSTANT_BYTES, BatchShape
from fam_engine.report.training import card_line
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes
from tests.model.packing_reference import pack_reference
from tests.model.training.test_recomputation import LLAMA, SHAPES

ROOT = Path(__file__).parents[3]
GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def needs_of(config: ModelConfig, spec: LoraSpec, **changes: Any) -> MemoryNeeds:  # noqa: ANN401
    settings: dict[str, Any] = {
        "precision": "fp32",
        "compute_dtype": torch.float32,
        "device": CPU,
        "optimizer": "adamw",
        "num_multiprocessors": 0,
    }
    return memory_needs(config, spec, **(settings | changes))


def card_needs(shape: str) -> MemoryNeeds:
    """What a Llama of this shape needs on a GPU with the default settings of `train`."""
    config = TrainConfig(model="m", data=("d",), out=Path("out"))
    return needs_of(
        ModelConfig.from_dict(LLAMA | SHAPES[shape]),
        lora_spec(config),
        precision="nf4",
        compute_dtype=torch.bfloat16,
        device=CUDA,
        num_multiprocessors=128,
    )


def cards_of(shape: str, *, longest: int, **settings: Any) -> list[CardPlan]:  # noqa: ANN401
    config = TrainConfig(model="m", data=("d",), out=Path("out"), **settings)
    model = ModelConfig.from_dict(LLAMA | SHAPES[shape])
    return plan_cards(config, model, lora_spec(config), longest)


def test_needs_add_up(tiny_model: Path) -> None:
    spec = LoraSpec(rank=2, alpha=8.0, dropout=0.0, target_modules=("q_proj",), use_rslora=False)
    config = ModelConfig.from_folder(tiny_model)
    needs = needs_of(config, spec)
    # Two layers, rank 2, A of 64 columns and B of 64 rows: value, gradient and copy in 4 bytes each.
    trained = 2 * 2 * (64 + 64)
    assert needs.adapter == trained * 12
    assert needs_of(config, spec, compute_dtype=torch.bfloat16).adapter == trained * 10
    assert needs.optimizer == trained * 8
    assert needs_of(config, spec, optimizer="adamw8bit").optimizer == trained * 2
    # q, k, v, o and gate, up, down of two layers, embeddings and head, 4 bytes each.
    matrices = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128) + 2 * 258 * 64
    assert needs.weights == 4 * matrices
    plan = plan_for(needs, 1 * GIB, CPU, longest=10, max_tokens=128, host_free=0)
    parts = (plan.weights, plan.scratch, plan.adapter, plan.optimizer, plan.activations)
    assert plan.total == sum(parts)
    assert plan.activations == needs.activations(BatchShape(128, 10), Policy(2))
    one, two = (
        needs.activations(BatchShape(num_tokens, 10), Policy(1)) - CONSTANT_BYTES
        for num_tokens in (128, 256)
    )
    assert two == 2 * one


@pytest.mark.parametrize("target_modules", [("q_proj", "v_proj"), ("up_proj",), ("down_proj",)])
def test_the_scratch_memory_is_what_the_step_makes(
    tiny_model: Path, target_modules: tuple[str, ...]
) -> None:
    spec = LoraSpec(3, 8.0, 0.0, target_modules, use_rslora=False)
    decoder = load_model(tiny_model, precision="nf4", compute_dtype="fp32", device="cpu")
    model = TrainableModel(decoder, spec, seed=0)
    batch = pack_reference([([1, 2], [3, 4])])
    model.base_token_nll(batch)
    model.forward_backward(batch, torch.ones_like, dropout_seed=None, policy=Policy(0))
    made = decoder.scratch.reserve(0)
    needs = needs_of(decoder.config, spec, precision="nf4")
    assert needs.scratch == made.numel() * made.itemsize


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # By size of the card: the budget in tokens, the layers that keep their activations. For 8B on 24 GB by
        # hand: 24 GiB - 0.75 GiB - 6.693e9 bytes leave 18.27e9, nine tenths of it less 64 MiB and a tile of 640 MiB
        # 15.71e9. A token takes 32 x 8,224 + 32 x 86,240 + 57,344 bytes: 5,099, in multiples of 64 5,056.
        ("1B", {8: (5376, 16), 12: (9920, 16), 16: (14464, 16), 24: (16384, 16)}),
        ("3B", {8: (2048, 22), 12: (3904, 28), 16: (6080, 28), 24: (10432, 28)}),
        ("8B", {8: (2048, 0), 12: (2048, 19), 16: (2560, 32), 24: (5056, 32)}),
    ],
)
def test_plans_for_cards(shape: str, expected: dict[int, tuple[int, int]]) -> None:
    cards = cards_of(shape, longest=512)
    assert all(card.fits for card in cards)
    assert {card.gigabytes: (card.max_tokens, card.num_whole) for card in cards} == expected
    for card in cards:
        assert card.total <= card.gigabytes * GIB - (768 << 20)


@pytest.mark.parametrize(
    ("settings", "longest", "fitting"),
    [
        ({}, 512, [8, 12, 16, 24]),
        # 16-bit weights are 16 GB; a record of 40,960 tokens takes 7 GB more than the weights' 6.7.
        ({"precision": "bf16"}, 1024, [24]),
        ({}, 40_960, [16, 24]),
        ({}, 98_304, [24]),
        ({"precision": "fp32"}, 64, []),
        # 6,144 tokens do not fit the smallest beside an adapter of rank 16, but beside one of rank 4 they do.
        ({}, 6144, [12, 16, 24]),
        ({"rank": 4, "optimizer": "adamw8bit"}, 6144, [8, 12, 16, 24]),
    ],
)
def test_what_does_not_fit_a_card(
    settings: dict[str, Any], longest: int, fitting: list[int]
) -> None:
    cards = cards_of("8B", longest=longest, **settings)
    assert [card.gigabytes for card in cards if card.fits] == fitting


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    lines = [card_line(asdict(card)) for card in cards_of("8B", longest=512)]
    assert "\n".join(("```", "on an NVIDIA GPU (estimates):", *lines, "```")) in page


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_fits_and_uses_what_there_is(shape: str) -> None:
    needs = card_needs(shape)
    least = least_plan(needs, 512, 0)
    before = (0, 0)
    for free in range(least.total, 40 * 10**9, 3 * 10**8):
        plan = plan_for(needs, free, CUDA, longest=512, max_tokens=None, host_free=0)
        assert plan.total <= free
        assert plan.max_tokens % 64 == 0
        # Tokens come first up to what is enough, then layers, then tokens again.
        assert (plan.max_tokens, plan.num_whole) >= before or plan.num_whole > before[1]
        assert plan.max_tokens <= 2048 or plan.num_whole == needs.num_layers
        before = (plan.max_tokens, plan.num_whole)
    assert before[1] == needs.num_layers
    assert before[0] > 2048


def test_a_record_longer_than_the_budget_is_planned_for() -> None:
    needs, free = card_needs("8B"), 16 * 10**9
    short, long = (
        plan_for(needs, free, CUDA, longest=longest, max_tokens=2048, host_free=0)
        for longest in (100, 5001)
    )
    assert (short.num_tokens, long.num_tokens) == (2048, 5056)
    assert short.max_tokens == long.max_tokens == 2048
    assert long.num_whole < short.num_whole
    assert long.total <= free


def test_a_given_budget_is_kept() -> None:
    needs = card_needs("8B")
    plan = plan_for(needs, 12 * 10**9, CUDA, longest=100, max_tokens=16384, host_free=0)
    assert (plan.max_tokens, plan.num_whole, plan.host) == (16384, 0, 0)


def test_inputs_go_to_the_host_where_the_longest_record_would_not_fit() -> None:
    """As far as the host's memory goes; and what fits then is what `fits` and the refusal go by."""
    needs, free, longest = card_needs("8B"), 12 * 10**9, 20_000
    stays, goes = (
        plan_for(needs, free, CUDA, longest=longest, max_tokens=None, host_free=host_free)
        for host_free in (4 * GIB, 5 * GIB)
    )
    # 31 inputs of 20,032 tokens, 4,096 values of 2 bytes each.
    assert (stays.host, goes.host) == (0, 31 * 20_032 * 4096 * 2)
    assert goes.total <= free < stays.total
    assert (goes.num_whole, stays.num_whole) == (1, 0)
    fixed = needs.weights + needs.scratch + needs.adapter + needs.optimizer
    assert goes.step == StepPlan(2048, int(0.9 * (free - fixed)), 5 * GIB)
    # With more on the card nothing need go there.
    ample = plan_for(needs, 2 * free, CUDA, longest=longest, max_tokens=None, host_free=5 * GIB)
    assert (ample.host, ample.num_whole > 0) == (0, True)
    check_memory(least_plan(needs, longest, 5 * GIB), free, CUDA)
    with pytest.raises(DeviceError, match="free memory of the host, where inputs of layers can be"):
        check_memory(least_plan(needs, longest, 4 * GIB), free, CUDA)
    told = describe_plan(goes)
    assert told.endswith(
        "1 of 32 layers keep theirs, inputs of the others in 4.74 GiB of the host's memory "
        "(of the longest record, 20,032 tokens; shorter ones keep more)"
    )


def test_the_page_names_the_most_and_the_least_tokens_of_a_micro_batch() -> None:
    page = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    most, least = budget._MOST_TOKENS, budget._ENOUGH_TOKENS
    assert f"at most {most['cuda']:,} ({most['cpu']:,} on a CPU)" in page
    assert f"at least {least['cuda']:,} ({least['cpu']:,} on a CPU) if those fit at all" in page


def test_the_host_s_memory_is_for_gpus_and_shared_by_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 10 * GIB)
    assert host_share(CPU, 1) == 0
    assert (host_share(CUDA, 1), host_share(CUDA, 2)) == (8 * GIB, 4 * GIB)


def test_what_does_not_fit_is_refused_with_its_parts() -> None:
    plan = MemoryPlan(
        weights=4 * GIB,
        scratch=1 * GIB,
        adapter=1 * GIB,
        optimizer=1 * GIB,
        activations=9 * GIB,
        num_tokens=8192,
        max_tokens=64,
        num_layers=32,
        num_whole=0,
        host=0,
        room=0,
        host_room=0,
    )
    check_memory(plan, 16 * GIB, CPU)
    with pytest.raises(DeviceError) as caught:
        check_memory(plan, 15 * GIB, CPU)
    line = str(caught.value)
    assert "takes about 16.00 GiB: weights 4.00, scratch 1.00, adapter 1.00, optimizer 1.00" in line
    assert "9.00 of the longest record (8,192 tokens); a process has 15.00 on cpu" in line
    # What helps most comes first.
    assert line.index("--max-length") < line.index("nf4") < line.index("--rank")
    assert (caught.value.code, caught.value.exit_code) == ("E_MEMORY_PLAN", 8)
    told = describe_plan(plan)
    assert "activations 9.00; 0 of 32 layers keep theirs (of the longest record, 8,192" in told
    assert describe_plan(replace(plan, max_tokens=8192)).endswith("0 of 32 layers keep theirs")


def test_processes_on_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 12 * GIB)
    assert process_share(CPU, 3) == 4 * GIB
    assert process_share(CUDA, 3) == 12 * GIB


def test_a_job_is_refused_before_the_model_is_loaded_and_by_its_dry_run(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 1 << 10)
    monkeypatch.setattr("fam_engine.jobs.training.job.open_model", pytest.fail)
    with pytest.raises(DeviceError, match=r"E_MEMORY_PLAN.*weights"):
        train()
    with pytest.raises(DeviceError, match="E_MEMORY_PLAN"):
        forecast_train(TrainConfig(**settings), Notes())

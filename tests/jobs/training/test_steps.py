from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine._rust_tokenize import pack_batch
from fam_engine.data.packing import PackedBatch
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import DeviceError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples, find_examples
from fam_engine.jobs.training.losses import LossName, LossSettings
from fam_engine.jobs.training.optim import AdamW
from fam_engine.jobs.training.steps import GradientMaker, StepLoss, micro_batches
from fam_engine.jobs.training.validation import untrained_loss, validation_loss
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import HostMemoryError, LoraSpec, Policy, TrainableModel
from fam_engine.model.training import recomputation
from tests.jobs.training.small_job import make_records, write_records
from tests.model.conftest import TinyCheckpoint, tiny_checkpoint
from tests.model.shortages import SHORTAGES
from tests.model.test_trainable_numerics import loss_and_gradients_of_peft

__all__ = ["tiny_checkpoint"]

# Room for all that layers can keep.
AMPLE = 1 << 60


@pytest.fixture
def examples(tiny_model: Path, tmp_path: Path) -> Iterator[Examples]:
    data = write_records(tmp_path / "data.jsonl", make_records(10))
    encoder = TextEncoder(tiny_model)
    with Journal(tmp_path, {}, ingest.SCHEMA) as journal:
        files = [DataFile("data", data)]
        plan = IngestPlan(256, "quarantine")
        yield find_examples(journal, ingest_records(journal, encoder, plan, files, lambda _: None))


def model(folder: Path, dropout: float = 0.0) -> TrainableModel:
    spec = LoraSpec(
        rank=2, alpha=8.0, dropout=dropout, target_modules=("q_proj", "down_proj"), use_rslora=False
    )
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64", device="cpu")
    trainable = TrainableModel(decoder, spec, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a B of zeros would hide A's gradient, and make the base equal
        for leaf in trainable.parameters.values():
            leaf.normal_(std=0.2, generator=generator)
    return trainable


def gradients(
    folder: Path, examples: Examples, max_tokens: int, loss: LossName, dropout: float = 0.0
) -> tuple[StepLoss, dict[str, torch.Tensor]]:
    trainable = model(folder, dropout)
    maker = GradientMaker(trainable, examples, LossSettings(loss=loss), seed=5)
    found, _ = maker.step(3, examples.entries, StepPlan(max_tokens, AMPLE, 0))
    return found, gradients_of(trainable)


def check_same(
    found: StepLoss, trainable: TrainableModel, expected: tuple[StepLoss, dict[str, torch.Tensor]]
) -> None:
    """Hold loss and gradients to others, bit by bit."""
    loss, grads = expected
    assert found == loss
    found_grads = gradients_of(trainable)
    assert all(torch.equal(found_grads[name], grad) for name, grad in grads.items())


def gradients_of(trainable: TrainableModel) -> dict[str, torch.Tensor]:
    grads = {name: leaf.grad for name, leaf in trainable.parameters.items()}
    return {name: grad for name, grad in grads.items() if grad is not None}


@pytest.mark.parametrize("loss", ["plain", "stm", "soft", "dft", "excess"])
def test_a_step_is_the_same_however_it_is_split(
    tiny_model: Path, examples: Examples, loss: LossName
) -> None:
    assert len(micro_batches(examples, examples.entries, 64)) > 3
    assert len(micro_batches(examples, examples.entries, 4096)) == 1
    whole, grads_whole = gradients(tiny_model, examples, 4096, loss)
    split, grads_split = gradients(tiny_model, examples, 64, loss)
    assert split.num_targets == whole.num_targets == int(examples.target_len.sum())
    for name in ("loss", "nll", "kept"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), rel=1e-11, abs=1e-12)
    assert grads_whole.keys() == grads_split.keys()
    for name, grad in grads_whole.items():
        assert (grad - grads_split[name]).abs().max() <= 1e-11 * grad.abs().max() + 1e-15
    if loss == "plain":
        assert whole.kept == 1.0
        assert whole.loss == whole.nll
    else:
        assert whole.kept < 1.0
        assert whole.loss < whole.nll


def test_a_step_equals_transformers_with_peft(tiny_model: Path, examples: Examples) -> None:
    """In float64: the mean over the tokens of all records, each alone in a plain forward pass of theirs."""
    trainable = model(tiny_model)
    expected_loss, expected = 0.0, {}
    num_targets = examples.num_targets(examples.entries)
    for entry in examples.entries.tolist():
        context, targets = examples.spool.read(entry)
        loss, grads = loss_and_gradients_of_peft(
            tiny_model, trainable, (context.tolist(), targets.tolist())
        )
        share = len(targets) / num_targets
        expected_loss += share * loss
        for name, grad in grads.items():
            expected[name] = expected.get(name, 0.0) + share * grad
    for max_tokens in (64, 4096):
        found, grads = gradients(tiny_model, examples, max_tokens, "plain")
        assert abs(found.loss - expected_loss) <= 1e-9
        assert grads.keys() == expected.keys()
        assert max((grads[name] - expected[name]).abs().max() for name in expected) <= 1e-9


@pytest.mark.parametrize("loss", ["plain", "excess"])
def test_the_layers_that_keep_their_activations_change_no_bit(
    tiny_model: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch, loss: LossName
) -> None:
    results = []
    policies = policies_of(monkeypatch)
    for num_whole in (0, 1, 2):
        trainable = model(tiny_model, dropout=0.2)
        maker = GradientMaker(trainable, examples, LossSettings(loss=loss), seed=5)
        room = room_for(trainable, examples, Policy(num_whole))
        found, _ = maker.step(3, examples.entries, StepPlan(4096, room, 0))
        results.append((found, gradients_of(trainable)))
    assert policies == [Policy(0), Policy(1), Policy(2)]
    (found, grads), *others = results
    for other_found, other_grads in others:
        assert other_found == found
        assert all(torch.equal(grad, other_grads[name]) for name, grad in grads.items())


def room_for(trainable: TrainableModel, examples: Examples, policy: Policy) -> int:
    """Give the room that a micro-batch of all examples takes with a policy."""
    batch = PackedBatch.of(examples.spool, examples.entries)
    return trainable.activation_bytes(batch, policy)


def policies_of(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """Give what layers keep of micro-batches, as they come."""
    policies: list[Policy] = []
    real = TrainableModel.forward_backward

    def noted(self: TrainableModel, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        policies.append(settings["policy"])
        return real(self, *args, **settings)

    monkeypatch.setattr(TrainableModel, "forward_backward", noted)
    return policies


def test_shorter_micro_batches_keep_more_layers(
    tiny_model: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies, trainable = policies_of(monkeypatch), model(tiny_model)
    room = room_for(trainable, examples, Policy(0))
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    for max_tokens in (4096, 64):
        maker.step(0, examples.entries, StepPlan(max_tokens, room, 0))
    assert policies[0] == Policy(0)
    assert set(policies[1:]) == {Policy(2)}


def test_dropout_follows_the_seed_of_the_step(tiny_model: Path, examples: Examples) -> None:
    one, two = (gradients(tiny_model, examples, 64, "plain", dropout=0.5)[0] for _ in range(2))
    assert one == two
    assert one.nll != gradients(tiny_model, examples, 64, "plain")[0].nll


def test_validation_is_the_mean_over_tokens_without_dropout(
    tiny_model: Path, examples: Examples
) -> None:
    trainable = model(tiny_model, dropout=0.5)
    found, _ = gradients(tiny_model, examples, 4096, "plain")
    for budget in (64, 4096):
        measured = validation_loss(trainable, examples, budget)
        assert measured == pytest.approx(found.nll, rel=1e-11)
    assert all(leaf.grad is None for leaf in trainable.parameters.values())


def run_short_of_memory(
    monkeypatch: pytest.MonkeyPatch,
    is_short: Callable[[PackedBatch, Policy], bool],
    error: type[Exception] | None = None,
) -> list[tuple[int, Policy]]:
    """Let micro-batches run out of memory once computed; give, as they come, entries and policies."""
    monkeypatch.setattr(
        recomputation, "CONSTANT_BYTES", 0
    )  # beside which these few tokens are nothing
    tried: list[tuple[int, Policy]] = []
    real = TrainableModel.forward_backward

    def short(self: TrainableModel, batch: PackedBatch, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        policy = settings["policy"]
        tried.append((len(batch.entries), policy))
        result = real(self, batch, *args, **settings)
        if is_short(batch, policy):
            raise error("injected") if error else SHORTAGES[len(tried) % len(SHORTAGES)]()
        return result

    monkeypatch.setattr(TrainableModel, "forward_backward", short)
    return tried


@pytest.fixture
def four_layers(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("llama", num_hidden_layers=4, vocab_size=258)


def test_memory_that_runs_out_lets_fewer_layers_keep_their_activations(
    four_layers: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(four_layers, examples, 4096, "plain")
    trainable = model(four_layers)
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    tried = run_short_of_memory(monkeypatch, lambda _, policy: policy.num_whole > 0)
    found, plan = maker.step(3, examples.entries, StepPlan(4096, AMPLE, 0))
    assert plan.max_tokens == 4096
    assert plan.room == 0.75 * room_for(trainable, examples, tried[-2][1])
    numbers = [policy.num_whole for _, policy in tried]
    assert numbers[0] == 4 > numbers[1] > numbers[-1] == 0
    # What the failed attempts had added is gone, and no bit is another.
    check_same(found, trainable, expected)


def test_and_their_inputs_go_to_the_host_s_memory(
    four_layers: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(four_layers, examples, 4096, "plain")
    trainable = model(four_layers)
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    tried = run_short_of_memory(monkeypatch, lambda _, policy: not policy.offload)
    found, plan = maker.step(3, examples.entries, StepPlan(4096, AMPLE, AMPLE))
    assert tried[0] == (10, Policy(4))
    assert tried[-1][1].offload
    assert plan.max_tokens == 4096
    check_same(found, trainable, expected)


def test_a_host_without_memory_is_not_asked_again(
    four_layers: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = model(four_layers)
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    tried = run_short_of_memory(monkeypatch, lambda _, policy: policy.offload, HostMemoryError)
    found, plan = maker.step(3, examples.entries, StepPlan(4096, 0, AMPLE))
    assert tried == [(10, Policy(0, offload=True)), (10, Policy(0))]
    assert plan == StepPlan(4096, 0, 0)
    assert found == gradients(four_layers, examples, 4096, "plain")[0]


def test_gradients_are_added_in_the_optimizer_s_buffer_from_the_first_step_on(
    four_layers: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after memory ran out: no step has a second copy of them, and each has the bits of gradients made anew."""
    expected = gradients(four_layers, examples, 4096, "plain")
    trainable = model(four_layers)
    optimizer = AdamW("adamw", trainable.parameters, weight_decay=0.0)
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    in_buffer: list[bool] = []
    real = TrainableModel.forward_backward

    def noted(self: TrainableModel, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        result = real(self, *args, **settings)
        places = {leaf.grad.untyped_storage().data_ptr() for leaf in self.parameters.values()}  # type: ignore[union-attr]
        in_buffer.append(places == {optimizer._flat.gradients.untyped_storage().data_ptr()})
        return result

    monkeypatch.setattr(TrainableModel, "forward_backward", noted)
    tried = run_short_of_memory(monkeypatch, lambda _, policy: policy.num_whole > 0)
    found, _ = maker.step(3, examples.entries, StepPlan(4096, AMPLE, 0))
    assert len(tried) > 1
    assert in_buffer == [True] * len(tried)
    check_same(found, trainable, expected)


def test_a_short_micro_batch_that_fails_beside_a_long_plan_gets_less(
    four_layers: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by what failed, not by what the longest record would take."""
    tried = run_short_of_memory(monkeypatch, lambda _, policy: policy.num_whole > 1)
    maker = GradientMaker(model(four_layers), examples, LossSettings(), seed=5)
    _, plan = maker.step(3, examples.entries[:1], StepPlan(64, AMPLE, 0))
    assert [policy.num_whole for _, policy in tried][-1] <= 1
    assert plan.max_tokens == 64


def test_then_it_halves_the_micro_batch(
    tiny_model: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = gradients(tiny_model, examples, 4096, "plain")
    trainable = model(tiny_model)
    maker = GradientMaker(trainable, examples, LossSettings(), seed=5)
    with monkeypatch.context() as patch:
        tried = run_short_of_memory(patch, lambda batch, _: len(batch.entries) > 4)
        found, plan = maker.step(3, examples.entries, StepPlan(4096, AMPLE, 0))
    assert 64 <= plan.max_tokens < 4096
    assert (10, Policy(0)) in tried
    assert found.nll == pytest.approx(whole.nll, rel=1e-11)
    _, expected = gradients(tiny_model, examples, plan.max_tokens, "plain")
    grads = gradients_of(trainable)
    assert all(torch.equal(grads[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize("num_entries", [1, 10])
def test_memory_that_never_suffices_ends_the_run(
    tiny_model: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch, num_entries: int
) -> None:
    least = micro_batches(examples, examples.entries, 64)
    assert any(len(batch) > 1 for batch in least)  # which no smaller budget cuts further
    tried = run_short_of_memory(monkeypatch, lambda *_: True)
    maker = GradientMaker(model(tiny_model), examples, LossSettings(), seed=5)
    with pytest.raises(DeviceError, match=r"step 1.*smallest micro-batch"):
        maker.step(0, examples.entries[:num_entries], StepPlan(4096, AMPLE, 0))
    assert tried[-1][1] == Policy(0)


def test_answers_to_one_question_share_a_micro_batch_and_its_prompt(examples: Examples) -> None:
    # Every question of `make_records` has two answers, which are adjacent entries.
    batches = micro_batches(examples, examples.entries, 128)
    assert len(batches) > 1
    for batch in batches:
        assert {int(entry) // 2 for entry in batch} == {int(entry) // 2 for entry in batch[::2]}
        packed = pack_batch(examples.spool, batch)
        prompts = [s for s in range(len(packed["parents"])) if s in packed["parents"]]
        assert len(prompts) == len(batch) / 2


@pytest.mark.parametrize("measure", [validation_loss, untrained_loss])
def test_a_measurement_goes_on_where_memory_runs_out(
    tiny_model: Path,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
    measure: Callable[..., float],
) -> None:
    trainable = model(tiny_model)
    expected = measure(trainable, examples, 4096)
    name = "token_nll" if measure is validation_loss else "base_token_nll"
    token_nll, most = getattr(trainable, name), 3

    def short_of_memory(batch: PackedBatch) -> torch.Tensor:
        if len(batch.entries) > most:
            raise torch.OutOfMemoryError("injected")
        return token_nll(batch)

    monkeypatch.setattr(trainable, name, short_of_memory)
    assert measure(trainable, examples, 4096) == pytest.approx(expected, rel=1e-12)
    most = 0
    with pytest.raises(DeviceError, match="E_OOM_RECORD"):
        measure(trainable, examples, 4096)

"""The benchmarks' engines compute the same things from the same bytes: else their times would mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu-check runs them there")


@pytest.fixture(scope="module")
def folder(models: Path) -> str:
    return str(models / "tiny")


def documents(name: str, num_tokens: int) -> list[Any]:
    import workloads

    return workloads.make_documents(name, num_tokens, 600)


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("documents", 5000), ("blocks", 4096), ("blocks", 96)]
)
def test_documents_have_just_the_tokens_asked_for(name: str, num_tokens: int) -> None:
    made = documents(name, num_tokens)
    assert sum(len(one.prompt) + len(one.answers[0]) for one in made) == num_tokens
    assert all(len(one.prompt) and len(one.answers[0]) for one in made)
    assert max(int(one.answers[0].max()) for one in made) < 600


@pytest.mark.filterwarnings("ignore")
def test_log_probs_agree(folder: str) -> None:
    import engines
    import workloads

    questions = workloads.make_workload("G8", 2, 600)
    ours = engines.OursEngine(folder, "nf4", "cpu").run(questions, 512)
    peer = engines.TransformersEngine(folder, "nf4-dequantize", "cpu").run(questions, 4)
    assert len(ours) == workloads.count_tokens(questions)["answer"]
    assert np.abs(ours - peer).max() < 0.05  # bf16, of log-probs about -6.4


@pytest.mark.filterwarnings("ignore")
def test_answers_have_the_tokens_asked_for_and_begin_alike(folder: str) -> None:
    import decode_engines
    import workloads

    prompts = [one.prompt for one in workloads.make_workload("G1", 6, 600)]
    asked = decode_engines.Asked(prompts, 1, 3, 4, 0.0)
    ours = decode_engines.OursDecoding(folder, "cpu").run(asked)
    peer = decode_engines.TransformersDecoding(folder, "cpu", "dynamic").run(asked)
    assert len(ours) == len(peer) == 6
    assert all(len(ids) == 3 for ids in peer)
    # Nearly tied: fp32 against bf16 may choose another here and there.
    assert sum(a[0] == b[0] for a, b in zip(ours, peer, strict=True) if len(a)) >= 4


def test_samples_of_a_prompt_are_its_own(folder: str) -> None:
    import decode_engines
    import workloads

    prompts = [one.prompt for one in workloads.make_workload("G1", 3, 600)]
    engine = decode_engines.OursDecoding(folder, "cpu")
    both = engine.run(decode_engines.Asked(prompts, 2, 4, 8, 1.0))
    again = engine.run(decode_engines.Asked(prompts, 2, 4, 2, 1.0))
    assert len(both) == 6
    assert all(np.array_equal(a, b) for a, b in zip(both, again, strict=True))


def steps_with(gradients: dict[str, Any]) -> Any:  # noqa: ANN401
    import train_engines

    arrays = {name: np.array(values) for name, values in gradients.items()}
    return train_engines.Steps([2.0], [1.0], 0, 0, arrays)


@pytest.mark.parametrize(
    ("gradient", "cosine", "is_shown"),
    [([1.0, 0.05], 0.99875, True), ([1.0, 0.2], 0.98058, False), ([np.nan, 1.0], np.nan, False)],
)
def test_parity_names_the_worst_gradient_and_whether_it_is_near_enough(
    gradient: list[float], cosine: float, is_shown: bool
) -> None:
    import gpu_table
    import train_comparison

    ours = steps_with({"near": [3.0, 4.0], "far": [1.0, 0.0], "last": [0.0, 2.0]})
    peer = steps_with({"near": [3.0, 4.01], "far": gradient, "last": [0.0, 2.0]})
    found = train_comparison.distance(ours, peer)
    assert found["worst_gradient"] == "far"
    assert found["is_parity_shown"] is is_shown
    assert found["least_gradient_cosine"] == pytest.approx(cosine, abs=1e-4, nan_ok=True)
    row = {"shape": "8b", "parity": {"peer": found}}
    (line,) = gpu_table._parities({"8b": {"results": [row], "failed": {}}})
    assert "(`far`)" in line
    assert ("Parity is not shown." in line) is not is_shown


@pytest.mark.filterwarnings("ignore")
def test_training_starts_alike_and_goes_on_alike(folder: str) -> None:
    import train_comparison
    import train_engines
    import train_peers

    given = documents("documents", 1200)
    setting = train_engines.Setting(docs=1)
    ours = train_engines.OursTraining(folder, "cpu").run([given] * 3, setting, True)
    engine = train_peers.PeerTraining(folder, "cpu", "peft")
    peer = engine.run([given] * 3, setting, True)
    found = train_comparison.distance(ours, peer)
    assert found["least_gradient_cosine"] > 0.999
    assert found["loss_difference"] < 1e-3
    assert min(np.linalg.norm(one) for one in ours.gradients.values()) > 1e-6
    assert ours.losses[0] - ours.losses[-1] > 1e-3
    assert np.allclose(ours.losses, peer.losses, atol=2e-3)
    # Ours has the micro-batches that `train` plans for the memory there is.
    assert "2,048 tokens" in ours.plan
    less = train_engines.OursTraining(folder, "cpu").run([given], train_engines.Setting(0.01), True)
    assert "64 tokens" in less.plan
    assert less.losses[0] == pytest.approx(ours.losses[0], abs=1e-5)
    # However documents are spread over micro-batches, and whether layers are computed twice.
    for docs, is_checkpointing in ((0, False), (1, True)):
        again = engine.run([given], train_engines.Setting(0, docs, is_checkpointing), True)
        assert again.losses[0] == pytest.approx(peer.losses[0], abs=2e-3)
        assert train_comparison.distance(ours, again)["least_gradient_cosine"] > 0.999
    # Unsloth's documents are packed; transformers takes such a row too, by a dense mask.
    engine.kind = "unsloth"
    packed = engine.run([given], train_engines.Setting(docs=0), True)
    assert packed.losses[0] == pytest.approx(peer.losses[0], abs=2e-3)
    assert train_comparison.distance(ours, packed)["least_gradient_cosine"] > 0.999


@pytest.mark.filterwarnings("ignore")
def test_trl_makes_whole_steps(folder: str) -> None:
    import train_engines
    import train_peers

    pytest.importorskip("trl")
    given = documents("documents", 1200)
    assert len(given) % 4
    setting = train_engines.Setting(docs=4)
    found = train_peers.TrlTraining(folder, "cpu").run([given] * 3, setting, True)
    peer = train_peers.PeerTraining(folder, "cpu", "peft").run([given] * 3, setting, True)
    assert len(found.seconds) == 3
    assert np.allclose(found.losses, peer.losses, atol=1e-3)
    assert found.gradients.keys() == peer.gradients.keys()


def test_micro_batches_that_are_mostly_padding_are_not_tried() -> None:
    import bench_train
    import train_peers

    uneven, even = documents("documents", 16384), documents("blocks", 16384)
    assert train_peers.padded_tokens(uneven, 1) == train_peers.padded_tokens(even, 8) == 16384
    assert bench_train._micro_batches("peft", uneven) == [4, 1]
    assert bench_train._micro_batches("unsloth-none", uneven) == [0, 4, 1]
    for name in ("peft", "unsloth"):
        assert bench_train._micro_batches(name, even) == [8, 4, 1]


def test_only_a_lack_of_memory_is_no_failure() -> None:
    import train_engines

    leaf = torch.ones(1)

    def ending_with(message: str) -> Any:  # noqa: ANN401
        leaf.grad = torch.ones(1)

        def run() -> Any:  # noqa: ANN401
            raise RuntimeError(message)

        return train_engines.or_out_of_memory(run, {"leaf": leaf})

    assert ending_with("Triton Error [CUDA]: out of memory") is None
    assert leaf.grad is None
    with pytest.raises(RuntimeError, match="misaligned"):
        ending_with("CUDA error: misaligned address")


def test_what_a_step_must_read_is_what_the_model_holds(folder: str) -> None:
    import bench_decode
    import decode_engines
    import random_models

    from fam_engine.model.loading import load_model

    decoder = load_model(folder, compute_dtype="bf16", device="cpu")
    held = decoder.weights.head_VD.nbytes
    for linear in decoder.weights.linears():
        for part in linear.weight:
            held += part.packed.nbytes + part.absmax.nbytes + part.absmax2.nbytes
    config = random_models.SHAPES["tiny"]
    nothing = decode_engines.Asked([np.empty(0, np.int32)], 1, 0, 1, 0.0)
    assert bench_decode.step_bytes(config, nothing) == pytest.approx(held, rel=1e-3)
    # Sixteen more keys and values, of four tokens' answers half written on the average.
    eight = decode_engines.Asked([np.empty(0, np.int32)], 1, 4, 8, 0.0)
    position = 2 * 2 * config["num_key_value_heads"] * config["head_dim"] * 2
    assert bench_decode.step_bytes(config, eight) - bench_decode.step_bytes(
        config, nothing
    ) == pytest.approx(16 * position)

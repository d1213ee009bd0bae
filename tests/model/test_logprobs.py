"""Facts of tokens against a dense float64 softmax; memory; which bits depend on what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fam_engine.measure.results import TokenFacts
from fam_engine.model.logprobs import token_facts

# 1: nothing but the target; 1024: one tile; 1025: a tile of one token; 5000: several and a rest.
VOCABULARIES = [1, 2, 63, 1024, 1025, 5000]


def dense_facts(hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets: np.ndarray) -> TokenFacts:
    logits_RV = hidden_RD.double() @ head_VD.double().T
    logprobs_RV = logits_RV.log_softmax(-1)
    row, target = torch.arange(len(targets)), torch.from_numpy(targets).long()
    own = logits_RV[row, target]
    others = logits_RV.clone()
    others[row, target] = -torch.inf
    larger = (others > own[:, None]).sum(1)
    return TokenFacts(
        logprobs=logprobs_RV[row, target].numpy(),
        ranks=(1 + larger).clamp(max=100).int().numpy(),
        entropies=-(logprobs_RV.exp() * logprobs_RV).sum(1).numpy(),
        margins=(own - others.amax(1)).numpy(),
    )


Made = tuple[torch.Tensor, torch.Tensor, np.ndarray]


def make(num_rows: int, vocab_size: int, dtype: torch.dtype, spread: float = 3.0) -> Made:
    torch.manual_seed(vocab_size)
    hidden_RD = torch.randn(num_rows, 48).to(dtype)
    head_VD = (torch.randn(vocab_size, 48) * spread / 48**0.5).to(dtype)
    targets = np.random.default_rng(0).integers(0, vocab_size, num_rows).astype(np.int32)
    return hidden_RD, head_VD, targets


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bf16 hidden states and weights are multiplied exactly in fp32.
    [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)],
)
def test_facts_equal_the_dense_ones(vocab_size: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden_RD, head_VD, targets = make(640, vocab_size, dtype)  # a tile of 512 rows and a rest
    facts = token_facts(hidden_RD, head_VD, targets, num_rows=600)
    truth = dense_facts(hidden_RD, head_VD, targets).slice(0, 600)
    assert len(facts) == 600
    assert np.abs(facts.logprobs - truth.logprobs).max() <= tolerance
    assert np.abs(facts.entropies - truth.entropies).max() <= 4 * tolerance
    assert (facts.ranks != truth.ranks).mean() <= (0 if dtype == torch.float64 else 0.005)
    if vocab_size > 1:
        assert np.abs(facts.margins - truth.margins).max() <= tolerance
    assert facts.logprobs.dtype == facts.entropies.dtype == facts.margins.dtype == np.float64
    assert facts.ranks.dtype == np.int32


@pytest.mark.parametrize("spread", [0.0, 1e-3, 60.0, 2000.0])
def test_flat_and_extreme_logits(spread: float) -> None:
    hidden_RD, head_VD, targets = make(64, 3000, torch.float32, spread)
    facts = token_facts(hidden_RD, head_VD, targets, num_rows=64)
    truth = dense_facts(hidden_RD, head_VD, targets)
    size = max(1.0, float((hidden_RD @ head_VD.T).abs().max()))
    assert np.abs(facts.logprobs - truth.logprobs).max() <= 2e-6 * size
    assert np.abs(facts.entropies - truth.entropies).max() <= 1e-5 * size
    assert np.isfinite(facts.margins).all()


def test_tokens_with_equal_logits_do_not_count_against_the_target() -> None:
    hidden_RD, head_VD, _ = make(64, 4000, torch.float32)
    head_VD[:] = head_VD[:1]  # unused tokens often have equal rows
    targets = np.arange(64, dtype=np.int32) * 61
    facts = token_facts(hidden_RD, head_VD, targets, num_rows=64)
    assert (facts.ranks == 1).all()
    assert (facts.margins == 0).all()


def test_ranks_are_clipped_at_100() -> None:
    head_VD = torch.arange(2000, dtype=torch.float32)[:, None] / 2000
    hidden_RD = torch.ones(64, 1)
    targets = np.full(64, 1990, np.int32)
    targets[:3] = 1999, 1901, 1899
    facts = token_facts(hidden_RD, head_VD, targets, num_rows=64)
    assert facts.ranks[:4].tolist() == [1, 99, 100, 10]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_other_rows(dtype: torch.dtype, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    hidden_RD, head_VD, targets = make(1088, 1100, dtype)
    whole = token_facts(hidden_RD, head_VD, targets, num_rows=1088)
    for start, stop in ((0, 64), (64, 192), (320, 1088), (512, 576)):
        part = token_facts(
            hidden_RD[start:stop], head_VD, targets[start:stop], num_rows=stop - start
        )
        for name in ("logprobs", "ranks", "entropies", "margins"):
            expected = getattr(whole, name)[start:stop]
            assert np.array_equal(getattr(part, name), expected), name


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor any operation returns."""

    num_bytes = 0

    def __torch_dispatch__(  # type: ignore[override]
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_never_exist(dtype: torch.dtype) -> None:
    hidden_RD, head_VD, targets = make(1024, 20000, dtype)
    with LargestTensor() as largest:
        token_facts(hidden_RD, head_VD, targets, num_rows=1024)
    # A tile of logits in fp32 has 2 MiB and the fp32 head 3.7; all logits would have 41 MB in bf16.
    assert largest.num_bytes <= 2**22

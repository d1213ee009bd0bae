"""`--exact`: products of one height only, and the same results; here on a CPU made to take the way of a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fam_engine.config import Precision
from fam_engine.errors import DeviceError
from fam_engine.model import ops, products
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.exactness import check_exact
from fam_engine.model.loading import load_model
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import facts_of, random_entries

# More tokens than one product has rows and fewer than two; a batch of the first two has fewer than one.
LENGTHS = [(9, 30), (40, 12), (33, 64), (3, 17), (25, 6)]
FIXED = 128


class Heights(TorchDispatchMode):
    """Notes how many rows each product with a matrix has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        del types
        rows_of = {torch.ops.aten.linear: 0, torch.ops.aten.mm: 0, torch.ops.aten.addmm: 1}
        rows_of[torch.ops.aten.addmm_] = 1
        if func.overloadpacket in rows_of:
            self.found.add(args[rows_of[func.overloadpacket]].shape[0])
        return func(*args, **(kwargs or {}))


def exact(decoder: Decoder) -> Decoder:
    made = Decoder(
        decoder.config,
        decoder.weights,
        precision=decoder.precision,
        compute_dtype=decoder.compute_dtype,
        device=decoder.device,
        exact=True,
    )
    assert made._scratch.fixed_rows is None  # a CPU needs none
    made._scratch.fixed_rows = FIXED
    return made


@pytest.mark.parametrize(
    ("precision", "compute_dtype"), [("fp32", "fp32"), ("nf4", "bf16"), ("nf4", "fp32")]
)
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_one_height_give_the_same_bits(
    tiny_checkpoint: TinyCheckpoint, precision: Precision, compute_dtype: ComputeDtype, bias: bool
) -> None:
    folder = tiny_checkpoint("llama", attention_bias=bias, mlp_bias=bias)
    decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
    entries = random_entries(160, LENGTHS)
    for some in (entries, entries[:2]):
        for ours, theirs in zip(
            facts_of(exact(decoder), some), facts_of(decoder, some), strict=True
        ):
            assert np.array_equal(ours.logprobs, theirs.logprobs)
            assert np.array_equal(ours.entropies, theirs.entropies)


@pytest.mark.parametrize("bias", [False, True])
def test_products_have_one_height(tiny_checkpoint: TinyCheckpoint, bias: bool) -> None:
    folder = tiny_checkpoint("llama", attention_bias=bias, mlp_bias=bias)
    decoder = load_model(folder, precision="bf16", compute_dtype="bf16")
    batch = pack_reference(random_entries(160, LENGTHS))
    with Heights() as free:
        decoder.hidden_rows(batch)
    with Heights() as fixed:
        exact(decoder).hidden_rows(batch)
    assert free.found == {len(batch.input_ids), len(batch.rows)}
    assert fixed.found == {FIXED}


@pytest.fixture
def decoder(tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    monkeypatch.setattr(products, "FIXED_ROWS", FIXED)
    folder = tiny_checkpoint("qwen2", num_hidden_layers=1)
    return exact(load_model(folder, precision="nf4", compute_dtype="bf16"))


def test_what_holds_is_accepted(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "has_fused_logprob", lambda *_: True)
    check_exact(decoder)


@pytest.mark.parametrize("matrix", ["o", "gate_up", "down", "qkv"])
def test_a_row_that_depends_on_its_place_is_refused(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, matrix: str
) -> None:
    monkeypatch.setattr(ops, "has_fused_logprob", lambda *_: True)
    linear, addmm_ = torch.nn.functional.linear, torch.Tensor.addmm_
    shape = (one := getattr(decoder.weights.layers[0], matrix)).out_features, one.in_features
    more = 1 + 2**-7  # the last bit of bf16, or the one before

    def by_place(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        product = linear(x, weight, bias)
        if weight.shape == shape:
            product[40] *= more
        return product

    def added_by_place(total: torch.Tensor, x: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
        addmm_(total, x, turned)
        if turned.t().shape == shape:
            total[40] *= more
        return total

    # Each is multiplied as a pass does: these two are added to what is there.
    if matrix in ("o", "down"):
        monkeypatch.setattr(torch.Tensor, "addmm_", added_by_place)
    else:
        monkeypatch.setattr(products.functional, "linear", by_place)
    with pytest.raises(DeviceError, match="depend on the place of a row") as refusal:
        check_exact(decoder)
    assert "--exact" in str(refusal.value.hint)


def test_a_head_that_torch_multiplies_is_refused(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "has_fused_logprob", lambda *_: False)
    with pytest.raises(DeviceError, match="the head is bfloat16 and multiplied in bfloat16"):
        check_exact(decoder)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce

import pytest
import torch

from fam_engine.kernels import lora_backward as reference
from fam_engine.kernels import lora_backward_triton as kernel
from fam_engine.kernels.lora_backward_triton import lora_backward
from tests.kernels.compiling import printed_by_compiled
from tests.kernels.on import DEVICE, DTYPES, rounding

Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make(num_rows: int, width: int, rank: int, dtype: torch.dtype) -> Given:
    torch.manual_seed(0)
    shapes = ((num_rows, width), (num_rows, rank), (width, rank))
    grad, inner, lora_B = (torch.randn(shape).to(DEVICE, dtype) for shape in shapes)
    return grad, inner, lora_B


def gradients(given: Given, scaling: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    grad_inner = torch.full_like(given[1], torch.nan)
    grad_B = torch.zeros(given[2].shape, device=DEVICE)
    lora_backward(*given, scaling=scaling, grad_inner_TR=grad_inner, grad_B_NR=grad_B)
    return grad_inner, grad_B


# Rows: one, a tile of 32 and more, a split of 256 and more. Columns: one, a block of 256 and more.
# Ranks: one, below 16, 16, between powers of 2, the largest kernel's (splits of 512), the first of products.
@pytest.mark.parametrize(
    ("num_rows", "width", "rank"),
    [(1, 1, 1), (45, 37, 5), (33, 300, 16), (300, 40, 33), (530, 17, 64), (45, 37, 65)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(
    num_rows: int, width: int, rank: int, dtype: torch.dtype
) -> None:
    given = make(num_rows, width, rank, dtype)
    grad_inner, grad_B = gradients(given, scaling=1.7)
    true_inner = torch.empty(num_rows, rank, dtype=torch.float64, device=DEVICE)
    true_B = torch.zeros(width, rank, dtype=torch.float64, device=DEVICE)
    wide = [tensor.double() for tensor in given]
    reference.lora_backward(*wide, scaling=1.7, grad_inner_TR=true_inner, grad_B_NR=true_B)
    # Products are of size 1; each that is summed in fp32 adds less than 2e-7 to the error.
    error = (grad_inner.double() - true_inner).abs()
    assert (error <= rounding(dtype) * true_inner.abs() + 2e-7 * 1.7 * width).all()
    assert ((grad_B.double() - true_B).abs() <= 2e-7 * 1.7 * (num_rows + 3)).all()


def test_large_matrices_have_larger_blocks_and_the_same_result() -> None:
    given = make(40, 8200, 3, torch.float32)
    wide = kernel._making(8200, 3, torch.bfloat16).constants["BN"]
    assert wide > kernel._making(8000, 3, torch.bfloat16).constants["BN"]
    grad_inner, _ = gradients(given)
    truth = 2 * given[0].double() @ given[2].double()
    assert (grad_inner.double() - truth).abs().max() <= 2e-6 * truth.abs().max()


def test_adds_to_what_is_there() -> None:
    given = make(45, 37, 5, torch.float32)
    _, expected = gradients(given)
    grad_B = torch.full((37, 5), 3.0, device=DEVICE)
    lora_backward(*given, scaling=2.0, grad_inner_TR=torch.empty_like(given[1]), grad_B_NR=grad_B)
    assert torch.equal(grad_B, expected + 3)


def test_a_row_of_the_inner_gradient_depends_on_that_row_only() -> None:
    given = make(300, 300, 5, torch.float32)
    whole, _ = gradients(given)
    for rows in (slice(0, 1), slice(7, 270)):
        few, _ = gradients((given[0][rows], given[1][rows], given[2]))
        assert torch.equal(few, whole[rows])


# Shares: one, a few, all that are loaded at once but some, one more than those.
@pytest.mark.parametrize("count", [1, 3, 9, 17])
def test_shares_of_rows_are_added_in_order(count: int) -> None:
    given = make(256 * count - 7, 37, 5, torch.float32)
    _, whole = gradients(given)
    # Two is a power of two: scaling a sum and summing what is scaled is the same.
    parts = (gradients((grad, inner, given[2]))[1] for grad, inner in split(256, *given[:2]))
    assert torch.equal(whole, in_order(parts))
    assert torch.equal(whole, gradients(given)[1])


@pytest.mark.parametrize("count", [1, 3, 9, 17])
def test_shares_of_columns_are_added_in_order(count: int) -> None:
    given = make(45, 64 * count - 7, 5, torch.float32)
    whole, _ = gradients(given)
    columns = split(64, given[0].t(), given[2])
    parts = (gradients((grad.t().contiguous(), given[1], B))[0] for grad, B in columns)
    assert torch.equal(whole, in_order(parts))


def split(size: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def in_order(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    return reduce(torch.add, parts)


def test_rows_are_taken_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make(600, 37, 5, torch.float32)
    whole = gradients(given)
    monkeypatch.setattr(kernel, "_chunk", lambda width, rank: 256)
    for chunked, expected in zip(gradients(given), whole, strict=True):
        assert torch.equal(chunked, expected)


def test_a_chunk_has_more_rows_where_they_are_small() -> None:
    assert [kernel._chunk(width, 16) for width in (1024, 4096, 14336)] == [32768, 8192, 4096]
    assert [kernel._chunk(width, 64) for width in (1024, 4096)] == [8192, 4096]


@pytest.mark.parametrize("rank", [5, 65])
def test_reads_and_writes_nothing_beside_its_columns(rank: int) -> None:
    given = make(45, 37, rank, torch.float32)
    grad_inner, grad_B = gradients(given)
    # As training has it: dY with dS in its tail, x with S in its tail; all else is poison.
    d = torch.full((45, 2 * (37 + rank)), torch.nan, device=DEVICE)
    x = torch.full((45, 80 + rank), torch.nan, device=DEVICE)
    d[:, 1:38], x[:, 60 : 60 + rank] = given[0], given[1]
    found: Mapping[str, torch.Tensor] = {
        "grad_inner_TR": d[:, 40 : 40 + rank],
        "grad_B_NR": torch.zeros_like(grad_B),
    }
    lora_backward(d[:, 1:38], x[:, 60 : 60 + rank], given[2], scaling=2.0, **found)
    assert torch.allclose(found["grad_inner_TR"], grad_inner, rtol=1e-6, atol=1e-5)
    assert torch.allclose(found["grad_B_NR"], grad_B, rtol=1e-6, atol=1e-5)
    assert d.isnan().sum() == d.numel() - 45 * (37 + rank)
    assert torch.equal(d[:, 1:38], given[0])


PROGRAM = """
import re
import triton
from triton.backends.compiler import GPUTarget
from fam_engine.kernels import lora_backward_triton
from tests.kernels import offline

for variant in lora_backward_triton.variants(90):
    if variant.name.startswith("lora_backward shares bf16 N=4096"):
        target = GPUTarget("cuda", 90, 32)
        made = triton.compile(offline._source(variant), target, options=variant.launch.options).asm
        buffers = re.findall("memdesc<([0-9])x32x256xbf16.* mutable>", made["ttgir"])
        waits = re.findall("warp_group_dot_wait.*pendings = ([0-9]+)", made["ttgir"])
        print(set(buffers), set(waits))
"""


def test_dY_is_loaded_ahead_but_not_over_what_is_still_read() -> None:
    # Two buffers are read by mma.sync, which ends before it is left; wgmma runs on by itself, unless it is awaited.
    assert printed_by_compiled(PROGRAM) == "{'2'} set()\n" * 2 + "{'3'} {'0'}\n"

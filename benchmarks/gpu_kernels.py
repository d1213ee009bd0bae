"""Every kernel on its own: time, and the shares of the card's measured copy and matrix rates it reaches.

    python benchmarks/gpu_kernels.py --out kernels.json

In: the shapes of Llama-3.1-8B, random data. Out: a dictionary, a row a kernel, as JSON. Bytes are those that must
move at least (each input read once, each output written once), operations those of the products; a kernel near one of
its shares is near the card's limit. The card's cache is emptied before every call (`timing`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    # Before anything imports Triton, which asks once.
    os.environ["TRITON_INTERPRET"] = "1"

from timing import copy_rate, matrix_rate, milliseconds, synchronize

from fam_engine.kernels import (
    add_rmsnorm_triton,
    cached_attention_triton,
    dropout_triton,
    flat_adamw_triton,
    grad_norm_triton,
    linear_cross_entropy_triton,
    linear_logprob_tiles_triton,
    linear_logprob_triton,
    lora_backward_triton,
    nf4_dequantize_triton,
    nf4_linear_triton,
    nf4_quantize_triton,
    qk_norm_rope_triton,
    rmsnorm_triton,
    sample_triton,
    sum_rows_triton,
    swiglu_triton,
    varlen_attention,
)
from fam_engine.kernels.flat_adamw import step_scalars
from fam_engine.kernels.nf4_dequantize import LoraFactors, NF4Weight

_EPS = 1e-5


@dataclass(frozen=True)
class Shapes:
    """What the kernels are given; by default a batch of Llama-3.1-8B.

    Attributes:
        num_tokens: T.
        hidden: D.
        intermediate: F.
        heads: H.
        groups: G, key heads.
        width: d.
        vocab: V.
        rank: R of adapters.
        num_rows: Rows with a target.
        num_slots: Texts on their way.
        length: Keys a slot sees; length of a document.
        num_parameters: Of the adapter.
        num_layers: Whose products are made one after the other; several times as large as a GPU's cache.
        dtype: Compute dtype.
        device: Where.
    """

    num_tokens: int = 16384
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    groups: int = 8
    width: int = 128
    vocab: int = 128256
    rank: int = 16
    num_rows: int = 4096
    num_slots: int = 64
    length: int = 512
    num_parameters: int = 41_943_040
    num_layers: int = 5
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Give the rows of q, k and v."""
        return self.heads * self.width, self.groups * self.width, self.groups * self.width

    def random(self, *shape: int) -> torch.Tensor:
        """Give random values in the compute dtype."""
        return torch.randn(shape, device=self.device).to(self.dtype)

    def random_fp32(self, *shape: int) -> torch.Tensor:
        """Give random values in fp32."""
        return torch.randn(shape, device=self.device)

    def random_ids(self, below: int, *shape: int) -> torch.Tensor:
        """Give random numbers, int64."""
        return torch.randint(below, shape, device=self.device)


@dataclass(frozen=True)
class Case:
    """One kernel to time.

    Attributes:
        name: Which, and how.
        call: Runs it.
        num_bytes: That must move.
        num_flops: Of its products.
        tensors: What it reads and does not hold, since it is a graph.
    """

    name: str
    call: Callable[[], object]
    num_bytes: int
    num_flops: int = 0
    tensors: object = None


def cases(s: Shapes) -> Iterator[Case]:
    """Yield all cases; the data of one is freed before the next is made."""
    for make in _groups():
        yield from make(s)


def _groups() -> tuple[Callable[[Shapes], Iterator[Case]], ...]:
    return (
        _of_matrices,
        _of_layers,
        _of_rows,
        _of_the_head,
        _of_decoding,
        _of_training,
        _of_attention,
    )


def measure(shapes: Shapes, keep: Callable[[dict[str, Any]], None]) -> None:
    """Time all cases and hand on all that is known after each; one that fails ends its group."""
    device = shapes.device
    copies, products = copy_rate(device), matrix_rate(device)
    found: dict[str, Any] = {"copy_bytes_per_s": copies, "matrix_flops_per_s": products}
    rows: dict[str, Any] = {}
    for make in _groups():
        name = make.__name__
        try:
            for case in make(shapes):
                name = case.name
                seconds = milliseconds(case.call, device) / 1e3
                rows[name] = {
                    "ms": seconds * 1e3,
                    "share_of_copy_rate": case.num_bytes / seconds / copies,
                    "share_of_matrix_rate": case.num_flops / seconds / products,
                }
                keep(found | {"kernels": rows})
        except Exception as error:  # the other groups are to be timed all the same
            rows[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            keep(found | {"kernels": rows})


def run_once(shapes: Shapes) -> None:
    """Run every case, for a tool that watches memory; the first one that fails ends it."""
    for case in cases(shapes):
        case.call()
        synchronize(shapes.device)
        print(case.name, flush=True)


def _nf4(s: Shapes, num_rows: int, num_columns: int) -> NF4Weight:
    num_blocks = num_rows * num_columns // 64
    return NF4Weight(
        packed=torch.randint(256, (num_blocks * 32,), dtype=torch.uint8, device=s.device),
        absmax=torch.randint(256, (num_blocks,), dtype=torch.uint8, device=s.device),
        absmax2=torch.rand(-(-num_blocks // 256), device=s.device),
        offset=torch.tensor(0.1, device=s.device),
        code2=torch.randn(256, device=s.device).sort().values,
        shape=(num_rows, num_columns),
    )


def _packed_bytes(sources: Sequence[NF4Weight]) -> int:
    return sum(
        part.nbytes
        for weight in sources
        for part in (weight.packed, weight.absmax, weight.absmax2, weight.offset, weight.code2)
    )


def _lora(s: Shapes, num_rows: int, num_columns: int) -> LoraFactors:
    lora_A, lora_B = s.random_fp32(s.rank, num_columns), s.random_fp32(num_rows, s.rank)
    return LoraFactors(lora_A=lora_A, lora_B=lora_B, scaling=2.0)


def _of_matrices(s: Shapes) -> Iterator[Case]:
    for n, k in ((s.hidden, s.hidden), (s.intermediate, s.hidden), (s.hidden, s.intermediate)):
        yield from _of_dense(s, f"{n}x{k}", (n,), k)
        out = s.random(n, k)
        yield Case(
            f"nf4_quantize {n}x{k}",
            lambda out=out: nf4_quantize_triton.nf4_quantize(out),  # type: ignore[misc]
            out.nbytes + n * k // 2 + n * k // 16,
        )
        yield from _of_few_rows(s, f"{n}x{k}", (n,), k)
    for name, rows in (("q, k, v", s.qkv), ("gate, up", (s.intermediate,) * 2)):
        yield from _of_dense(s, name, rows, s.hidden)
        yield from _of_few_rows(s, name, rows, s.hidden)


def _of_dense(s: Shapes, name: str, rows: tuple[int, ...], k: int) -> Iterator[Case]:
    """Time matrices brought to the compute dtype: alone, with adapters merged, and as a training step has them."""
    sources, loras = [_nf4(s, n, k) for n in rows], [_lora(s, n, k) for n in rows]
    n, r = sum(rows), -(-s.rank * len(rows) // 16) * 16
    lora_A, num_B = s.random(r, k), sum(lora.lora_B.nbytes for lora in loras)
    ways: tuple[tuple[str, tuple[int, int], dict[str, Any], int], ...] = (
        ("", (n, k), {}, 0),
        (" with adapter", (n, k), {"loras": loras}, 0),
        (" and sB beside", (n, k + r), {"beside": loras}, num_B),
        (" and A below", (n + r, k), {"below": lora_A}, lora_A.nbytes),
    )
    for what, shape, options, num_bytes in ways:
        out = s.random(*shape)

        def dense(out=out, options=options) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            nf4_dequantize_triton.nf4_dequantize(sources, out=out, **options)

        num_bytes += _packed_bytes(sources) + out.nbytes
        yield Case(f"nf4_dequantize {name}{what}", dense, num_bytes)


def _adapter_bytes(loras: list[LoraFactors]) -> int:
    return sum(lora.lora_A.nbytes + lora.lora_B.nbytes for lora in loras)


def _of_few_rows(s: Shapes, name: str, rows: tuple[int, ...], k: int) -> Iterator[Case]:
    sources = [_nf4(s, n, k) for n in rows]
    packed = _packed_bytes(sources)
    adapters = [_lora(s, n, k) for n in rows]
    for m, loras in ((1, []), (8, []), (8, adapters), (64, [])):
        x, y = s.random(m, k), s.random(m, sum(rows))

        def few(x=x, y=y, loras=loras) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            nf4_linear_triton.nf4_linear(x, sources, out=y, loras=loras)

        num_bytes = packed + x.nbytes + y.nbytes
        num_bytes += _adapter_bytes(loras)
        what = f"{m} rows {name}{' with adapter' * bool(loras)}"
        yield Case(f"nf4_linear {what}", few, num_bytes, 2 * m * sum(rows) * k)


def _of_layers(s: Shapes) -> Iterator[Case]:
    """Time all products of some layers as a step of answering makes them: in a graph, where kernels begin early."""
    shapes: list[tuple[tuple[int, ...], int]] = [
        (s.qkv, s.hidden),
        ((s.hidden,), s.heads * s.width),
        ((s.intermediate,) * 2, s.hidden),
        ((s.hidden,), s.intermediate),
    ] * s.num_layers
    matrices = [([_nf4(s, n, k) for n in rows], k) for rows, k in shapes]
    packed = sum(_packed_bytes(sources) for sources, _ in matrices)
    weights = sum(sum(rows) * k for rows, k in shapes)
    for m, has_adapter in ((1, False), (1, True), (8, False), (16, False)):
        work = []
        for sources, k in matrices:
            rows = [source.shape[0] for source in sources]
            loras = [_lora(s, n, k) for n in rows] if has_adapter else []
            work.append((s.random(m, k), sources, s.random(m, sum(rows)), loras))

        def products(work=work) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            for x, sources, y, loras in work:
                nf4_linear_triton.nf4_linear(x, sources, out=y, loras=loras)

        moved = packed + sum(x.nbytes + y.nbytes for x, _, y, _ in work)
        moved += sum(_adapter_bytes(loras) for *_, loras in work)
        name = f"nf4_linear {m} rows, {s.num_layers} layers{' with adapter' * has_adapter}"
        yield Case(name, _in_graph(products, s.device), moved, 2 * m * weights, work)


def _in_graph(call: Callable[[], None], device: str) -> Callable[[], None]:
    """Give a CUDA graph of a call, where there is one: a tool that watches memory wants allocations of their own."""
    if device == "cpu" or "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:
        return call
    call()  # compiles, which a graph cannot
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _of_rows(s: Shapes) -> Iterator[Case]:
    x, y, weight = (
        s.random(s.num_tokens, s.hidden),
        s.random(s.num_tokens, s.hidden),
        s.random(s.hidden),
    )
    out, rstd = torch.empty_like(x), s.random_fp32(s.num_tokens)
    yield Case("rmsnorm", lambda: rmsnorm_triton.rmsnorm(x, weight, eps=_EPS), 2 * x.nbytes)
    yield Case(
        "add_rmsnorm",
        lambda: add_rmsnorm_triton.add_rmsnorm(x, y, weight, eps=_EPS, out=out, rstd=rstd),
        4 * x.nbytes,
    )
    yield Case(
        "add_rmsnorm_backward",
        lambda: add_rmsnorm_triton.add_rmsnorm_backward(out, x, weight, rstd, grad_residual=y),
        4 * x.nbytes,
    )
    heads = s.random(s.num_tokens, s.heads + s.groups, s.width)
    cos, sin = s.random_fp32(2, s.num_tokens, s.width // 2)
    yield Case(
        "qk_norm_rope",
        lambda: qk_norm_rope_triton.qk_norm_rope(heads, cos, sin, norms=None, out_TNd=heads),
        2 * heads.nbytes + 2 * cos.nbytes,
    )
    gate_up, hidden = (
        s.random(s.num_tokens, 2 * s.intermediate),
        s.random(s.num_tokens, s.intermediate),
    )
    yield Case(
        "swiglu", lambda: swiglu_triton.swiglu(gate_up, out=hidden), gate_up.nbytes + hidden.nbytes
    )
    yield Case(
        "swiglu_backward",
        lambda: swiglu_triton.swiglu_backward(hidden, gate_up, out=hidden),
        2 * (gate_up.nbytes + hidden.nbytes),
    )


def _of_the_head(s: Shapes) -> Iterator[Case]:
    hidden, head = s.random(s.num_rows, s.hidden), s.random(s.vocab, s.hidden)
    targets = s.random_ids(s.vocab, s.num_rows)
    flops = 2 * s.num_rows * s.vocab * s.hidden
    for name, module in (("fused", linear_logprob_triton), ("tiles", linear_logprob_tiles_triton)):

        def facts(run=module.linear_logprob) -> object:  # type: ignore[no-untyped-def]  # noqa: ANN001
            return run(hidden, head, targets)

        yield Case(f"linear_logprob {name}", facts, head.nbytes + hidden.nbytes, flops)
    yield Case(
        "linear_cross_entropy with gradient",
        lambda: linear_cross_entropy_triton.linear_cross_entropy(
            hidden, head, targets, with_gradient=True
        ),
        2 * head.nbytes + 2 * hidden.nbytes,
        2 * flops,
    )


def _of_decoding(s: Shapes) -> Iterator[Case]:
    query = s.random(s.num_slots, s.heads, s.width)
    cache = s.random(s.num_slots, s.length, 2 * s.groups, s.width)
    new = s.random(s.num_slots, 2 * s.groups, s.width)
    lengths = torch.full((s.num_slots,), s.length, dtype=torch.int32, device=s.device)
    yield Case(
        "cached_attention",
        lambda: cached_attention_triton.cached_attention(
            query, cache, new, lengths, window=None, out_SHd=torch.empty_like(query)
        ),
        cache.nbytes,
    )
    logits = s.random_fp32(s.num_slots, s.vocab)
    seed = torch.randint(2**62, (s.num_slots,), device=s.device)
    position = torch.arange(s.num_slots, device=s.device)
    for name, temperature, top_p, top_k in (
        ("greedy", 0.0, 1.0, 0),
        ("temperature", 1.0, 1.0, 0),
        ("top-p", 1.0, 0.95, 0),
        ("top-k", 1.0, 1.0, 50),
    ):

        def choose(temperature=temperature, top_p=top_p, top_k=top_k) -> object:  # type: ignore[no-untyped-def]  # noqa: ANN001
            return sample_triton.sample(
                logits, seed, position, temperature=temperature, top_p=top_p, top_k=top_k
            )

        yield Case(f"sample {name}", choose, logits.nbytes)


def _of_training(s: Shapes) -> Iterator[Case]:
    grad, inner = s.random(s.num_tokens, s.hidden), s.random(s.num_tokens, s.rank)
    lora_B, grad_B = s.random(s.hidden, s.rank), s.random_fp32(s.hidden, s.rank)
    grad_inner, out = torch.empty_like(inner), torch.empty_like(grad)
    yield Case(
        "lora_backward",
        lambda: lora_backward_triton.lora_backward(
            grad, inner, lora_B, scaling=2.0, grad_inner_TR=grad_inner, grad_B_NR=grad_B
        ),
        grad.nbytes + 2 * inner.nbytes,
        4 * s.num_tokens * s.hidden * s.rank,
    )
    # Of every four rows two come from one place: a prompt that two answers read.
    taken = s.num_tokens // 4
    starts = torch.arange(s.num_tokens - taken + 1, dtype=torch.int32, device=s.device)
    starts += starts.clamp(max=taken)
    places = torch.arange(s.num_tokens, dtype=torch.int32, device=s.device)
    summed = grad[taken:].clone()
    yield Case(
        "sum_rows",
        lambda: sum_rows_triton.sum_rows(grad, places, starts, out_TW=summed),
        grad.nbytes + summed.nbytes,
    )
    seed = s.random_ids(1 << 40, 1)
    yield Case(
        "dropout",
        lambda: dropout_triton.dropout(grad, rate=0.1, seed=seed, stream=(0, 0, 0), out=out),
        2 * grad.nbytes,
    )
    params, grads, exp_avg, exp_avg_sq = (s.random_fp32(s.num_parameters) for _ in range(4))
    exp_avg_sq.abs_()
    scalars = step_scalars(10, 1e-4, betas=(0.9, 0.999), weight_decay=0.01).to(s.device).float()
    yield Case("grad_norm", lambda: grad_norm_triton.grad_norm(grads, max_norm=1.0), grads.nbytes)
    clip = grad_norm_triton.grad_norm(grads, max_norm=1.0)[1:]
    yield Case(
        "flat_adamw",
        lambda: flat_adamw_triton.flat_adamw(
            params,
            grads,
            exp_avg,
            exp_avg_sq,
            scalars=scalars,
            clip=clip,
            betas=(0.9, 0.999),
            eps=1e-8,
        ),
        7 * grads.nbytes,
    )


def _of_attention(s: Shapes) -> Iterator[Case]:
    num_documents = s.num_tokens // s.length
    query = s.random(s.num_tokens, s.heads, s.width)
    key, value = (
        s.random(s.num_tokens, s.groups, s.width),
        s.random(s.num_tokens, s.groups, s.width),
    )
    bounds = torch.arange(num_documents + 1, device=s.device, dtype=torch.int32) * s.length
    arguments: dict[str, Any] = {
        "cu_seqlens_q": bounds,
        "cu_seqlens_k": bounds,
        "max_seqlen_q": s.length,
        "max_seqlen_k": s.length,
        "window": None,
    }
    yield Case(
        "varlen_attention",
        lambda: varlen_attention.varlen_attention(query, key, value, **arguments),
        2 * query.nbytes + key.nbytes + value.nbytes,
        2 * s.num_tokens * s.length * s.heads * s.width,  # half of the pairs, two products
    )


def tiny(device: str) -> Shapes:
    """Give shapes small enough for Triton's interpreter, to see that every case runs."""
    return replace(
        Shapes(),
        num_tokens=32,
        hidden=64,
        intermediate=128,
        heads=4,
        groups=2,
        width=16,
        vocab=300,
        num_rows=5,
        num_slots=3,
        length=16,
        num_layers=1,
        num_parameters=160,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,  # the interpreter has no bf16
        device=device,
    )


def main() -> None:
    """Time all kernels, or with `--once` only run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the least shapes")
    parser.add_argument("--once", action="store_true", help="run every kernel once, time none")
    options = parser.parse_args()
    shapes = tiny(options.device) if options.tiny else Shapes(device=options.device)
    if options.once:
        run_once(shapes)
        return
    measure(shapes, lambda found: options.out.write_text(json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    main()

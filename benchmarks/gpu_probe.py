"""Questions a GPU must answer before its kernels are written: attention, matrix products, look-up modes.

    python benchmarks/gpu_probe.py --out probe.json

In: nothing. Out: a dictionary, as JSON. Does torch's flash varlen attention take grouped queries; what do a few extra
columns of K cost a cuBLAS product (room for LoRA inside it); which way of looking up NF4 codes is fastest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from timing import milliseconds


def flash_varlen_grouped_queries() -> dict[str, Any]:
    """Try aten's flash attention with 32 query and 8 key heads over two packed documents."""
    q, k, v = (torch.randn(192, heads, 128, device="cuda").bfloat16() for heads in (32, 8, 8))
    bounds = torch.tensor([0, 64, 192], dtype=torch.int32, device="cuda")
    try:
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, 128, 128, 0.0, True, False
        )[0]
    except RuntimeError as error:
        return {"takes_grouped_queries": False, "error": str(error).splitlines()[0]}
    worst = 0.0
    for a, b in ((0, 64), (64, 192)):
        keys, values = (x[a:b].repeat_interleave(4, 1).transpose(0, 1) for x in (k, v))
        truth = torch.nn.functional.scaled_dot_product_attention(
            q[a:b].transpose(0, 1).float(), keys.float(), values.float(), is_causal=True
        )
        worst = max(worst, float((out[a:b].transpose(0, 1).float() - truth).abs().max()))
    return {"takes_grouped_queries": True, "worst_difference": worst}


def extra_columns(rows: int = 4096, outer: int = 4096, inner: int = 4096) -> dict[str, float]:
    """Time bf16 products at K, K + 16, K + 32 and K + 64."""
    found = {}
    for extra in (0, 16, 32, 64):
        x = torch.randn(rows, inner + extra, device="cuda").bfloat16()
        w = torch.randn(outer, inner + extra, device="cuda").bfloat16()
        found[f"K+{extra}"] = milliseconds(lambda x=x, w=w: torch.mm(x, w.T))
    return found


def look_up_modes(num_weights: int = 1 << 26) -> dict[str, float]:
    """Time ways of turning packed bytes into pairs of values, in torch: what each reads differs."""
    packed = torch.randint(0, 256, (num_weights // 2,), dtype=torch.uint8, device="cuda")
    codes = torch.randn(16, device="cuda")
    pairs = torch.stack([codes.repeat_interleave(16), codes.repeat(16)], dim=1)

    def by_nibble() -> torch.Tensor:
        high, low = (packed >> 4).int(), (packed & 15).int()
        return torch.stack([codes[high], codes[low]], dim=1)

    return {
        "table_of_256_pairs": milliseconds(lambda: pairs[packed.int()]),
        "table_of_16_codes": milliseconds(by_nibble),
    }


def probe() -> dict[str, Any]:
    """Ask everything; a question that fails is its own answer."""
    questions = {
        "flash_varlen": flash_varlen_grouped_queries,
        "matmul_extra_columns_ms": extra_columns,
        "nf4_look_up_ms": look_up_modes,
    }
    answers: dict[str, Any] = {}
    for name, question in questions.items():
        try:
            answers[name] = question()
        except RuntimeError as error:
            answers[name] = {"error": str(error).splitlines()[0]}
    return answers


def main() -> None:
    """Ask and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(probe(), indent=1) + "\n")


if __name__ == "__main__":
    main()

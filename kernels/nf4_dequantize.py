"""NF4 to floating point, in plain torch: the reference, and the CPU's own path.

Every other dequantizer is compared with it. For value i of the flattened row-major matrix, in
block b = i // 64:

    weight[i] = round(NF4[index[i]] * (code2[absmax[b]] * absmax2[b // 256] + offset))

Every product and sum is rounded to float32 on its own (a fused multiply-add would give other bits),
the last rounding goes to the output dtype. This is what bitsandbytes computes, bit for bit. Any
shape: blocks straddle rows where K % 64 != 0.

Of a merged matrix (q, k, v; gate, up) all sources are written, one below the other. A training step
multiplies by a matrix and its adapters at once, so it has them written along (`training.augmented`):

    [W sB]   going forward: scaling * B of each source beside it, in columns of its own, else zeros
    [W; A]   going back: what is given, below

Dimensions: N rows of all sources, K columns, R rank of an adapter, C columns beside, all ranks.
Dtypes: uint8 pairs of indices and the two levels of scales in; bf16, fp16, fp32 or fp64 (which holds
the fp32 values) out. scaling * B is multiplied in B's dtype and rounded once.

Memory traffic: 0.5 byte in and one value out per weight. A byte is looked up whole: a table
of 256 pairs, each pair read as one 64-bit word, is 2.5 to 5 times faster than fancy indexing.
Chunks keep the float32 values before scaling in the cache: 0.55 ns a value on one core (AVX-512),
against 0.78 (to fp32) and 4.4 (to bf16) in one piece; bitsandbytes' C++ takes 0.2.

Rows far apart, and a merged adapter (weight + scaling * B @ A, added before the last rounding), take
a detour through chunks of rows in float32: here they are a reference more than a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch

BLOCK_SIZE: Final = 64
NESTED_BLOCK_SIZE: Final = 256
# 2^19 values: 2 MB of float32, the L2 cache of a server core.
BLOCKS_PER_CHUNK: Final = 8192

# The 16 values of NF4 (QLoRA, Dettmers et al. 2023, appendix E), as float32.
NF4_CODE: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, kw_only=True)
class NF4Weight:
    """A matrix of shape (N, K) in NF4 with double quantization.

    Attributes:
        packed: uint8[ceil(N * K / 2)], two indices a byte, the first in the high half.
        absmax: uint8[ceil(N * K / 64)], indices into `code2`, one a block.
        absmax2: float32[ceil(num_blocks / 256)], scales of `absmax`.
        offset: float32[] (no dimension), the mean taken off the absmaxes.
        code2: float32[256], the table behind `absmax`.
        shape: (N, K) = (out_features, in_features).
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    absmax2: torch.Tensor
    offset: torch.Tensor
    code2: torch.Tensor
    shape: tuple[int, int]

    def to(self, device: torch.device) -> NF4Weight:
        """Give the same weight on a device."""
        return replace(
            self,
            packed=self.packed.to(device),
            absmax=self.absmax.to(device),
            absmax2=self.absmax2.to(device),
            offset=self.offset.to(device),
            code2=self.code2.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """What an adapter adds to a matrix of shape (N, K): scaling * lora_B @ lora_A.

    Attributes:
        lora_A: [R, K] in any floating dtype.
        lora_B: [N, R] in the same.
        scaling: Factor of the product.
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float


def nf4_dequantize(
    sources: Sequence[NF4Weight],
    *,
    out: torch.Tensor,
    loras: Sequence[LoraFactors | None] = (),
    beside: Sequence[LoraFactors | None] = (),
    below: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write NF4 matrices one below the other, adapters merged, or what goes beside or below them.

    Args:
        sources: Matrices of K columns, N rows together.
        out: [N, K] of bf16, fp16, fp32 or fp64, rows contiguous, any row stride: where to write.
            With `beside` [N, K + C], with `below` [N + R, K].
        loras: The adapter of each source, or nothing for all, to add in float32 or wider, before the
            only rounding. At most one of `loras`, `beside` and `below` is given.
        beside: The adapter of each source whose scaling * B is written into the last C columns, see
            `write_scaled_B`.
        below: [R, K] of out's dtype, contiguous: to copy into the last R rows.

    Returns:
        `out`.
    """
    num_rows, num_columns = check_places(sources, out, loras=loras, beside=beside, below=below)
    start, blocks = 0, []
    for source, lora in zip(sources, loras or beside or [None] * len(sources), strict=True):
        stop = start + source.shape[0]
        _write_source(source, out[start:stop, :num_columns], lora if loras else None)
        if beside and lora is not None:
            blocks.append((start, lora.lora_B, lora.scaling))
        start = stop
    if beside:
        write_scaled_B(out[:, num_columns:], blocks)
    if below is not None:
        out[num_rows:] = below
    return out


def write_scaled_B(out: torch.Tensor, blocks: Sequence[tuple[int, torch.Tensor, float]]) -> None:
    """Write scaling * B of each adapter, multiplied in B's dtype, into columns of its own; else zeros.

    Args:
        out: [N, C], C at least all ranks: where to write.
        blocks: The first row, B [rows, R] and scaling of each adapter.
    """
    if sum(lora_B.numel() for _, lora_B, _ in blocks) < out.numel():
        out.zero_()
    column = 0
    for row, lora_B, scaling in blocks:
        num_rows, rank = lora_B.shape
        torch.mul(lora_B, scaling, out=out[row : row + num_rows, column : column + rank])
        column += rank


def check_places(
    sources: Sequence[NF4Weight],
    out: torch.Tensor,
    *,
    loras: Sequence[LoraFactors | None],
    beside: Sequence[LoraFactors | None],
    below: torch.Tensor | None,
) -> tuple[int, int]:
    """Check what `nf4_dequantize` is given, and give (N, K)."""
    num_rows = sum(source.shape[0] for source in sources)
    num_columns = sources[0].shape[1]
    assert all(source.shape[1] == num_columns for source in sources)
    assert bool(loras) + bool(beside) + (below is not None) <= 1
    num_below, num_beside = out.shape[0] - num_rows, out.shape[1] - num_columns
    assert num_below == (0 if below is None else len(below))
    assert below is None or (below.shape[1], below.dtype) == (num_columns, out.dtype)
    assert num_beside >= sum(lora.lora_B.shape[1] for lora in beside if lora)
    assert beside or num_beside == 0
    for source, lora in zip(sources, loras or beside or [None] * len(sources), strict=True):
        assert lora is None or lora.lora_A.shape[1] == num_columns
        assert lora is None or lora.lora_B.shape == (source.shape[0], len(lora.lora_A))
    assert out.stride(1) == 1 or out.shape[1] == 1
    return num_rows, num_columns


def _write_source(source: NF4Weight, out: torch.Tensor, lora: LoraFactors | None) -> None:
    num_rows, num_columns = source.shape
    num_values = num_rows * num_columns
    assert source.packed.numel() == -(-num_values // 2)
    assert source.absmax.numel() == -(-num_values // BLOCK_SIZE)
    packed, scale = source.packed.view(-1), nf4_scales(source)
    if lora is None and out.is_contiguous():
        _write_values(packed, scale, out.view(-1))
        return
    for rows in _row_chunks(num_rows, num_columns):
        first, last = rows.start * num_columns, rows.stop * num_columns
        wide = out.new_empty((rows.stop - rows.start, num_columns), dtype=_wide(out.dtype))
        pairs = packed[first // 2 : -(-last // 2)]
        _write_values(pairs, scale[first // BLOCK_SIZE : -(-last // BLOCK_SIZE)], wide.view(-1))
        if lora is not None:
            wide.addmm_(lora.lora_B[rows].to(wide) * lora.scaling, lora.lora_A.to(wide))
        out[rows] = wide


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _row_chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Cut the rows into chunks that begin with a block, whatever the columns: 64 rows or more."""
    step = BLOCK_SIZE * max(BLOCKS_PER_CHUNK // num_columns, 1)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _write_values(packed: torch.Tensor, scale: torch.Tensor, values: torch.Tensor) -> None:
    """Write consecutive values; the first one begins a block."""
    table = _pair_table(packed.device)
    num_full = values.numel() // BLOCK_SIZE
    for first in range(0, num_full, BLOCKS_PER_CHUNK):
        last = min(first + BLOCKS_PER_CHUNK, num_full)
        pairs = packed[first * BLOCK_SIZE // 2 : last * BLOCK_SIZE // 2]
        torch.mul(
            _look_up(table, pairs).view(-1, BLOCK_SIZE),
            scale[first:last, None],
            out=values[first * BLOCK_SIZE : last * BLOCK_SIZE].view(-1, BLOCK_SIZE),
        )
    tail = values.numel() - num_full * BLOCK_SIZE
    if tail:  # the last block is shorter, and of an odd number of values the last half byte is void
        last_values = _look_up(table, packed[num_full * BLOCK_SIZE // 2 :])[:tail]
        torch.mul(last_values, scale[num_full], out=values[num_full * BLOCK_SIZE :])


def nf4_scales(weight: NF4Weight) -> torch.Tensor:
    """Undo the double quantization: float32[num_blocks]."""
    absmax = weight.absmax.view(-1)
    nested = weight.absmax2.view(-1).repeat_interleave(NESTED_BLOCK_SIZE)[: absmax.numel()]
    return torch.index_select(weight.code2, 0, absmax.int()).mul_(nested).add_(weight.offset)


def _look_up(table: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Give float32[2 * n], unscaled, from uint8[n]."""
    return torch.index_select(table, 0, pairs.int()).view(torch.float32)


@lru_cache(maxsize=8)
def _pair_table(device: torch.device) -> torch.Tensor:
    """Give int64[256]: for each byte, its two float32 values as one word."""
    # A tensor made in inference mode could not be used in autograd later, and this one outlives the
    # call.
    with torch.inference_mode(False):
        code = torch.tensor(NF4_CODE, dtype=torch.float32)
        byte = torch.arange(256)
        pairs = torch.stack((code[byte >> 4], code[byte & 15]), dim=1)
        return pairs.view(torch.int64).view(-1).to(device)

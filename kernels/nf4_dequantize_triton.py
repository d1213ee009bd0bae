# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""NF4 to floating point, as one Triton kernel.

Equation and bits as in `nf4_dequantize.py`, its reference, for rows of whole blocks (K % 64 == 0).
Every product and sum is rounded on its own: compiled without fused multiply-adds. An adapter's
product comes from tensor cores, each factor as a sum of two TF32 numbers, which is about float32,
and is added before the only rounding.

All sources of a merged matrix are written in one launch, and so is what a training step has beside
or below it, by programs after those of the weights: a layer takes 4 launches forward and 4 back,
where one a source and torch's own for adapters (of all seven matrices) took 16 and 11. A whole step with
them was measured on an H100, not yet the launches themselves.

Dimensions: N rows of all sources, K columns, R rank of an adapter, C columns beside.
Dtypes: uint8 in, scales and adapters in fp32; bf16, fp16 or fp32 out, and what is copied below.
Memory traffic a weight: 0.516 byte in and one value out, in one launch. bitsandbytes (0.50) undoes
the double quantization in two launches of their own, through memory. With an adapter merged a program
also reads its parts of A and B, for 64 x 128 weights 192 R values, from the L2 cache. Beside: all B in,
N C values out; below: R K values in and out.

One program makes 128 blocks of 64 weights, `TILE_ROWS` by `TILE_BLOCKS`, of one source: a scale for
each of its 128 threads, handed on to where the block's weights are made. Packed bytes are loaded as
32-bit words, 16 bytes a thread, and change hands in shared memory, so that every store is of 16 bytes
beside the neighbour's. A program beside writes 128 rows of all C columns, one below copies as many
values as the others make. Rows and ranks are compiled in, a kernel a shape: some ten a model.

The 16 values lie in shared memory, in 16 different banks: a warp looks up 32 weights at once. That
is 6.4 to 8.1 instructions a weight of one matrix and 6.8 to 8.6 of a merged one, for all K and GPUs
compiled for, 4.5 of them the least this way (shift, mask, look-up, product, half a conversion).
Rejected, by the same count for sm_90 and K = 4096, where the kernel has 6.6, and 76 registers:

- the table in global memory (L1): 10.4, for an address there takes two instructions more;
- a tree of selects: 17.9;
- `tl.gather` from a table a block, which becomes shuffles: 19.3;
- packed bytes loaded as bytes, 7.6, or as 64-bit words, 8.0;
- half the weights a thread: 9.5, with 32 registers; twice: 6.0, with 151;
- a table of all 256 pairs in shared memory: 5.3, but 16 threads that read 8 bytes each at random
  meet 2.9 deep in the same bank: 5.8 cycles for 64 weights, where all instructions take 3.4 here;
- of merged ones, the source's first row added to each row instead of to the address: up to 23 registers more.

With an adapter of rank 16 it is 16.9 to 19.9, and would be 29 by multiply-adds of float32.
Measured on an H100, one matrix a launch: 93 to 96 % of the rate of a copy, with an adapter merged 34 to 38 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv, starts
from fam_engine.kernels.nf4_dequantize import (
    BLOCK_SIZE,
    NF4_CODE,
    LoraFactors,
    NF4Weight,
    check_places,
)

# Blocks a program: one scale a thread.
_NUM_BLOCKS: Final = 128
# Of them in a row where an adapter is merged: 64 x 128 weights, a shape for matrix instructions.
_MERGED_ROW_BLOCKS: Final = 2
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)
# Of a program that writes columns beside W: rows, and columns of a step.
_BESIDE_ROWS: Final = 128
_BESIDE_COLUMNS: Final = 16
# Rows of the sources and columns: of Qwen2.5-0.5B; Llama-3.2 1B and 3B; Llama-3.1 8B.
_SHIPPED: Final[tuple[tuple[tuple[int, ...], int], ...]] = (
    ((896,), 896),
    ((2048,), 2048),
    ((3072,), 3072),
    ((3072,), 8192),
    ((4096,), 4096),
    ((4096,), 14336),
    ((8192, 8192), 2048),
    ((8192, 8192), 3072),
    ((14336, 14336), 4096),
    ((4096, 1024, 1024), 4096),
)
# Of them, those that are also compiled with an adapter beside or below: the last of a layer, and merged ones.
_SHIPPED_AUGMENTED: Final = tuple(
    shape for shape in _SHIPPED if len(shape[0]) > 1 or shape[1] == 14336
)
# Columns do not change much with an adapter merged; whether the sum over its rank is a loop does.
_SHIPPED_RANKS: Final = (((4096,), 16), ((4096,), 64), ((4096, 1024, 1024), 16))
_RANK: Final = 16


@triton.jit
def _blocks_of(tile, K: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_BLOCKS: tl.constexpr):
    """Give the first row and column of a tile, and those of its blocks, row by row."""
    TILES_A_ROW: tl.constexpr = K // 64 // TILE_BLOCKS
    first_row = (tile // TILES_A_ROW * TILE_ROWS).to(tl.int64)
    first_column = tile % TILES_A_ROW * TILE_BLOCKS * 64
    block = tl.arange(0, TILE_ROWS * TILE_BLOCKS)
    row = first_row + block // TILE_BLOCKS
    column = first_column + block % TILE_BLOCKS * 64
    return first_row, first_column, row, column


@triton.jit
def _write_scaled_B(
    lora_B,
    scaling,
    out,
    out_stride,
    tile,
    ROWS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    RANKS: tl.constexpr,
    RANK_STARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Write rows of all columns beside W: scaling * B in the source's own, else zeros."""
    source_B, factor, rank, first_rank = lora_B[0], scaling[0], RANKS[0], RANK_STARTS[0]
    first_tile, begin, num_rows = 0, 0, ROWS[0]
    for source in tl.static_range(1, len(ROWS)):
        if tile >= TILES[source]:
            source_B, factor = lora_B[source], scaling[source]
            rank, first_rank = RANKS[source], RANK_STARTS[source]
            first_tile, begin, num_rows = TILES[source], STARTS[source], ROWS[source]
    row = (tile - first_tile) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None].to(tl.int64)
    inside = row < num_rows
    for first in range(0, COLUMNS, 16):
        column = first + tl.arange(0, 16)[None, :]
        r = column - first_rank
        is_own = (r >= 0) & (r < rank)
        b = tl.load(source_B + row * rank + r, mask=inside & is_own, other=0.0)
        value = tl.where(is_own, b.to(tl.float32) * factor, 0.0)
        place = out + (begin + row) * out_stride + column
        tl.store(place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _nf4_dequantize(
    packed,
    absmax,
    absmax2,
    offset,
    code2,
    code,
    lora_A,
    lora_B,
    scaling,
    below,
    out,
    out_stride,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    NUM_TILES: tl.constexpr,
    RANKS: tl.constexpr,
    RANK_STARTS: tl.constexpr,
    MOST_RANK: tl.constexpr,
    BESIDE: tl.constexpr,
    BESIDE_TILES: tl.constexpr,
    BESIDE_ROWS: tl.constexpr,
    BELOW: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
):
    NUM_BLOCKS: tl.constexpr = TILE_ROWS * TILE_BLOCKS
    tile = tl.program_id(0)
    # ---- what goes beside or below the weights: programs after theirs
    if BESIDE > 0 and tile >= NUM_TILES:
        _write_scaled_B(
            lora_B,
            scaling,
            out + K,
            out_stride,
            tile - NUM_TILES,
            ROWS,
            STARTS,
            BESIDE_TILES,
            RANKS,
            RANK_STARTS,
            BESIDE,
            BESIDE_ROWS,
        )
        return
    if BELOW > 0 and tile >= NUM_TILES:
        _, _, row, column = _blocks_of(tile - NUM_TILES, K, TILE_ROWS, TILE_BLOCKS)
        inside, value = (row < BELOW)[:, None], tl.arange(0, 64)[None, :]
        copied = tl.load(below + ((row * K + column)[:, None] + value), mask=inside)
        row += STARTS[len(STARTS) - 1] + ROWS[len(ROWS) - 1]
        tl.store(out + ((row * out_stride + column)[:, None] + value), copied, mask=inside)
        return
    # ---- which source
    source_packed, source_absmax, source_absmax2 = packed[0], absmax[0], absmax2[0]
    source_offset, source_code2 = offset[0], code2[0]
    first_tile, begin, num_rows = 0, 0, ROWS[0]
    for source in tl.static_range(1, len(ROWS)):
        if tile >= TILES[source]:
            source_packed, source_absmax = packed[source], absmax[source]
            source_absmax2, source_offset = absmax2[source], offset[source]
            source_code2 = code2[source]
            first_tile, begin, num_rows = TILES[source], STARTS[source], ROWS[source]
    # ---- which weights: blocks of this program
    tile -= first_tile
    first_row, first_column, row, column = _blocks_of(tile, K, TILE_ROWS, TILE_BLOCKS)
    block = row * (K // 64) + column // 64
    inside = row < num_rows
    # ---- the adapter's product, first: it needs most registers
    # Negative zeros leave all bits of what they are added to, where a source has no adapter; of -0.0 Triton 3.6 makes 0
    delta = tl.full((TILE_ROWS, TILE_BLOCKS * 64), -(2**31), tl.int32).to(tl.float32, bitcast=True)
    if MOST_RANK > 0:
        source_A, source_B, factor, rank = lora_A[0], lora_B[0], scaling[0], RANKS[0]
        for source in tl.static_range(1, len(ROWS)):
            if begin >= STARTS[source]:
                source_A, source_B = lora_A[source], lora_B[source]
                factor, rank = scaling[source], RANKS[source]
        row_B = first_row + tl.arange(0, TILE_ROWS)[:, None]
        column_A = first_column + tl.arange(0, TILE_BLOCKS * 64)[None, :]
        for first in range(0, rank, 16):
            r = first + tl.arange(0, 16)
            part_B = source_B + (row_B * rank + r[None, :])
            part_B = tl.load(part_B, mask=(row_B < num_rows) & (r < rank)[None, :], other=0.0)
            part_A = source_A + (r[:, None] * K + column_A)
            part_A = tl.load(part_A, mask=(r < rank)[:, None], other=0.0)
            delta = tl.dot(
                part_B.to(tl.float32) * factor,
                part_A.to(tl.float32),
                delta,
                input_precision="tf32x3",
            )
    # ---- scales
    index = tl.load(source_absmax + block, mask=inside, other=0).to(tl.int32)
    level = tl.load(source_code2 + index)
    scale = level * tl.load(source_absmax2 + (block >> 8), mask=inside, other=0.0)
    scale += tl.load(source_offset)
    # ---- weights: eight words a block, eight weights a word, the high half of a byte first
    word = tl.arange(0, 8)[None, :]
    words = source_packed.to(tl.pointer_type(tl.uint32)) + block[:, None] * 8 + word
    words = tl.load(words, mask=inside[:, None], other=0)
    shift = (tl.arange(0, 8) ^ 1)[None, None, :] * 4
    index = tl.reshape((words[:, :, None] >> shift) & 15, (NUM_BLOCKS * 64,)).to(tl.int32)
    weight = tl.gather(tl.load(code + tl.arange(0, 16)), index, axis=0)
    weight = tl.reshape(weight, (NUM_BLOCKS, 64)) * scale[:, None]
    if MOST_RANK > 0:
        weight += tl.reshape(delta, (NUM_BLOCKS, 64))
    # ---- store
    out += tl.cast(begin, tl.int64) * out_stride + first_column
    place = (row * out_stride + (column - first_column))[:, None] + tl.arange(0, 64)[None, :]
    tl.store(out + place, weight.to(out.dtype.element_ty), mask=inside[:, None])


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
        sources: Matrices of K columns, N rows together; all contiguous.
        out: [N, K] of bf16, fp16 or fp32, rows contiguous, any row stride: where to write. With
            `beside` [N, K + C], with `below` [N + R, K].
        loras: The adapter of each source, or nothing for all, to add in float32, before the only
            rounding; both factors contiguous, of one dtype for all. At most one of `loras`, `beside`
            and `below` is given.
        beside: The adapter of each source whose scaling * B, multiplied in float32, is written into
            the last C columns, each in columns of its own, with zeros elsewhere; C a multiple of 16.
        below: [R, K] of out's dtype, contiguous: to copy into the last R rows.

    Returns:
        `out`.

    Raises:
        ValueError: K is not a multiple of 64, or another dtype.
    """
    num_rows, num_columns = check_places(sources, out, loras=loras, beside=beside, below=below)
    if num_columns % BLOCK_SIZE:
        raise ValueError(
            f"the kernel needs a multiple of {BLOCK_SIZE} columns; found K = {num_columns}"
        )
    if out.dtype not in _DTYPES:
        raise ValueError(f"the kernel writes bfloat16, float16 or float32; asked for {out.dtype}")
    for source in sources:
        assert source.packed.numel() * 2 == source.absmax.numel() * BLOCK_SIZE
        assert source.packed.numel() * 2 == source.shape[0] * num_columns
        assert source.packed.data_ptr() % 4 == 0
        assert source.packed.is_contiguous()
        assert source.absmax.is_contiguous()
    adapters = loras or beside or (None,) * len(sources)
    for lora in adapters:
        assert lora is None or (lora.lora_A.is_contiguous() and lora.lora_B.is_contiguous())
    assert below is None or below.is_contiguous()
    code = _code(out.device)
    # A source without an adapter has another's in its place, none of whose ranks is read.
    some = next((lora for lora in adapters if lora), None)
    lora_A, lora_B = (some.lora_A, some.lora_B) if some else (code, code)
    num_beside, num_below = out.shape[1] - num_columns, out.shape[0] - num_rows
    launch, num_programs = _launch(
        tuple(source.shape[0] for source in sources),
        num_columns,
        tuple(len(lora.lora_A) if lora else 0 for lora in adapters),
        num_beside=num_beside,
        num_below=num_below,
    )
    _nf4_dequantize[(num_programs,)](
        tuple(source.packed for source in sources),
        tuple(source.absmax for source in sources),
        tuple(source.absmax2 for source in sources),
        tuple(source.offset for source in sources),
        tuple(source.code2 for source in sources),
        code,
        tuple(lora.lora_A if lora else lora_A for lora in adapters),
        tuple(lora.lora_B if lora else lora_B for lora in adapters),
        tuple(lora.scaling if lora else 0.0 for lora in adapters),
        below if num_below else code,
        out,
        out.stride(0),
        **launch.keywords,
    )
    return out


@cache
def _launch(
    features: tuple[int, ...],
    num_columns: int,
    ranks: tuple[int, ...],
    *,
    num_beside: int = 0,
    num_below: int = 0,
) -> tuple[Launch, int]:
    """Take as many blocks of a row as divide it, and rows to make up the number of blocks; give the programs, too."""
    assert num_beside % _BESIDE_COLUMNS == 0
    most_rank = 0 if num_beside else max(ranks)
    num_blocks = num_columns // BLOCK_SIZE
    blocks = min(num_blocks & -num_blocks, _MERGED_ROW_BLOCKS if most_rank else _NUM_BLOCKS)
    tile_rows = _NUM_BLOCKS // blocks

    def tiles_of(num_rows: int) -> int:
        return cdiv(num_rows, tile_rows) * (num_blocks // blocks)

    tiles = [tiles_of(rows) for rows in features]
    beside_tiles = [cdiv(rows, _BESIDE_ROWS) if num_beside else 0 for rows in features]
    constants = {
        "K": num_columns,
        "ROWS": features,
        "STARTS": starts(features),
        "TILES": starts(tiles),
        "NUM_TILES": sum(tiles),
        "RANKS": ranks,
        "RANK_STARTS": starts(ranks),
        "MOST_RANK": most_rank,
        "BESIDE": num_beside,
        "BESIDE_TILES": starts(beside_tiles),
        "BESIDE_ROWS": _BESIDE_ROWS,
        "BELOW": num_below,
        "TILE_ROWS": tile_rows,
        "TILE_BLOCKS": blocks,
    }
    # In stages, the loop over a rank of 64 is unrolled and spills on sm_80.
    launch = Launch(constants, num_stages=1, enable_fp_fusion=False)
    return launch, sum(tiles) + sum(beside_tiles) + tiles_of(num_below)


@lru_cache(maxsize=8)
def _code(device: torch.device) -> torch.Tensor:
    """Give the table on a device, made outside inference mode, for it outlives the call."""
    with torch.inference_mode(False):
        return torch.tensor(NF4_CODE, dtype=torch.float32, device=device)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for features, num_columns in _SHIPPED:
        yield _variant(features, num_columns)
    for features, num_columns in _SHIPPED_AUGMENTED:
        num_ranks = _RANK * len(features)
        yield _variant(features, num_columns, _RANK, num_beside=num_ranks)
        yield _variant(features, num_columns, num_below=num_ranks)
    for features, rank in _SHIPPED_RANKS:
        yield _variant(features, 4096, rank)


def _variant(
    features: tuple[int, ...],
    num_columns: int,
    rank: int = 0,
    *,
    num_beside: int = 0,
    num_below: int = 0,
) -> Variant:
    count, byte, wide = len(features), POINTER[torch.uint8], POINTER[torch.float32]
    launch, _ = _launch(
        features, num_columns, (rank,) * count, num_beside=num_beside, num_below=num_below
    )
    name = f"nf4_dequantize bf16 {'+'.join(map(str, features))}x{num_columns}"
    how = f"{num_beside} beside" if num_beside else f"{num_below} below" if num_below else ""
    how = how or (f"rank {rank}" if rank else "")
    return Variant(
        name=f"{name} {how}".strip(),
        kernel=_nf4_dequantize,
        arguments={
            **dict.fromkeys(("packed", "absmax"), (byte,) * count),
            **dict.fromkeys(("absmax2", "offset", "code2"), (wide,) * count),
            "code": wide,
            **dict.fromkeys(("lora_A", "lora_B"), (wide,) * count),
            "scaling": ("fp32",) * count,
            "below": POINTER[torch.bfloat16] if num_below else wide,
            "out": POINTER[torch.bfloat16],
            "out_stride": "i32",
        },
        launch=launch,
        divisible=frozenset({"out_stride"}),
        uses_matrix_units=bool(launch.constants["MOST_RANK"]),
        values=_NUM_BLOCKS * BLOCK_SIZE,
    )

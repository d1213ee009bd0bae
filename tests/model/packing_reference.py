"""The packer in plain Python: what Rust's must give, and what decoder tests use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fam_engine.data.packing import NO_PARENT, ROW_GRID, PackedBatch

Entry = tuple[Sequence[int], Sequence[int]]


def pack_reference(entries: Sequence[Entry], *, grid: int = ROW_GRID) -> PackedBatch:
    """Pack (context ids, target ids) pairs in their order; equal contexts share a segment.

    A `grid` of 1 packs without filling, which the real packer never does.
    """
    ids: list[int] = []
    positions: list[int] = []
    bounds, parents = [0], []
    rows: list[int] = []
    targets: list[int] = []
    entry_rows = [0]
    prompts: dict[tuple[int, ...], int] = {}

    def segment(tokens: Sequence[int], first: int, parent: int) -> int:
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        bounds.append(len(ids))
        parents.append(parent)
        return len(parents) - 1

    for context, target in entries:
        key = tuple(context)
        if key not in prompts:
            prompts[key] = segment(context, 0, NO_PARENT)
        prompt = prompts[key]
        rows.append(bounds[prompt + 1] - 1)
        if len(target) > 1:
            own = segment(target[:-1], len(context), prompt)
            rows.extend(range(bounds[own], bounds[own + 1]))
        targets.extend(target)
        entry_rows.append(len(rows))
    if len(ids) % grid:
        filling = -len(ids) % grid
        segment([0] * filling, 0, NO_PARENT)
    num_rows = len(rows)
    rows += [0] * (-num_rows % grid)
    targets += [0] * (-num_rows % grid)
    return PackedBatch(
        input_ids=np.array(ids, np.int32),
        position_ids=np.array(positions, np.int32),
        cu_seqlens=np.array(bounds, np.int32),
        parents=np.array(parents, np.int32),
        rows=np.array(rows, np.int32),
        targets=np.array(targets, np.int32),
        num_rows=num_rows,
        entry_rows=np.array(entry_rows, np.int64),
        entries=np.arange(len(entries), dtype=np.int64),
    )

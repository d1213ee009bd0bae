"""Records by source: the rows of each of the largest sources, and those of all others together.

In: the source of every record. Out: `BySource`. Intervals cost milliseconds, and a report lines, for each source; a
column of addresses has as many sources as records. So no more than `MAX_SOURCES` stand by themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fam_engine.measure.statistics import Ints, factorize

# Beyond this many sources a comparison of each with the first is no longer a table to read.
MAX_SOURCES = 200


@dataclass(frozen=True)
class BySource:
    """The rows of n records by their source.

    Attributes:
        rows: Name -> its rows, ascending; of the `MAX_SOURCES` with most records (of equal ones the first), in order of
            appearance.
        pooled: Rows of all other sources, ascending.
        num_pooled: How many those are.
    """

    rows: Mapping[str, Ints]
    pooled: Ints
    num_pooled: int


def source_seed(seed: int, *names: str) -> tuple[int, ...]:
    """Give the seed of resampling a source, or several against each other: whatever others there are."""
    return seed, *(zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names)


def by_source(labels: list[object]) -> BySource:
    """Sort n records by source."""
    codes, names = factorize(labels)
    sizes = np.bincount(codes, minlength=len(names))
    # One sort, not a search for each source.
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    order = np.argsort(-sizes, kind="stable")
    kept, others = np.sort(order[:MAX_SOURCES]), order[MAX_SOURCES:]
    return BySource(
        rows={str(names[code]): rows[code] for code in kept.tolist()},
        pooled=np.flatnonzero(np.isin(codes, others)),
        num_pooled=len(others),
    )

"""Packing speed and fill beside TRL and Axolotl, in one run, on one thread.

    python benchmarks/bench_packing.py --out results.json

Each packer gets the same lengths. TRL's `pack_dataset` moves the tokens of its records too, and cannot be asked for
less, so ours is measured with and without gathering them. Peers that are not installed are named in the result; they
are measured on fewer records than ours where a million would take minutes, and compared by seconds a million.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fam_engine._rust_tokenize import pack_lengths

HERE = Path(__file__).parent
NUM_RECORDS = 1_000_000

Lengths = np.ndarray
# Lengths -> the number of packs, and the tokens that are in them.
Packer = Callable[[Lengths, int], tuple[int, int]]


def make_lengths(name: str, count: int) -> tuple[Lengths, int]:
    """Make a set of lengths and its capacity.

    `gsm8k`: drawn from those of all its training records. `chat`: lognormal, median 403, up to the
    capacity. `uniform`: from 1 to the capacity, the hardest for all packers.
    """
    rng = np.random.default_rng(0)
    if name == "gsm8k":
        records = json.loads((HERE / "gsm8k_record_lengths.json").read_text())
        shares = np.array(records["count"]) / sum(records["count"])
        return rng.choice(records["length"], count, p=shares).astype(np.int64), 2048
    if name == "chat":
        return np.clip(rng.lognormal(6.0, 1.0, count), 1, 4096).astype(np.int64), 4096
    return rng.integers(1, 4097, count), 4096


def ours(**flags: Any) -> Packer:  # noqa: ANN401
    """Pack with `pack_lengths`."""

    def pack(lengths: Lengths, capacity: int) -> tuple[int, int]:
        return int(pack_lengths(lengths, capacity, **flags).max()) + 1, int(lengths.sum())

    return pack


def ours_gathered(lengths: Lengths, capacity: int) -> tuple[int, int]:
    """Pack, and put the tokens in the order of the packs, which is what TRL does besides."""
    column = make_column(lengths)
    bins = pack_lengths(lengths, capacity)
    gathered = column.take(pa.array(np.argsort(bins, kind="stable")))
    return int(bins.max()) + 1, len(gathered.flatten())


def make_column(lengths: Lengths) -> pa.LargeListArray:
    """Make records of so many tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = pa.array(np.zeros(offsets[-1], np.int32))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def trl_batch(batch_size: int) -> Packer:
    """Pack with TRL's `bfd`, in batches of so many rows (its `Dataset.map` default: 1,000)."""
    from trl.data_utils import _pack_bfd

    def pack(lengths: Lengths, capacity: int) -> tuple[int, int]:
        table = pa.table({"input_ids": make_column(lengths)})
        num_packs = num_tokens = 0
        for start in range(0, len(lengths), batch_size):
            part = table.slice(start, batch_size)
            packed = _pack_bfd(pa.concat_tables([part]).combine_chunks(), capacity)
            num_packs += len(packed)
            num_tokens += sum(len(chunk.flatten()) for chunk in packed["input_ids"].chunks)
        return num_packs, num_tokens

    return pack


def axolotl() -> Packer:
    """Pack with Axolotl's `pack_group`, in groups of 100,000 as its sampler does."""
    from axolotl.utils.samplers.multipack import pack_group

    group = 100_000
    pack_group(np.array([1, 2], np.int64), 0, 4, 2, 10**6, False)  # compiles

    def pack(lengths: Lengths, capacity: int) -> tuple[int, int]:
        num_packs = num_tokens = 0
        for start in range(0, len(lengths), group):
            part = lengths[start : start + group]
            bins = pack_group(part, start, capacity, len(part), 10**6, False)
            num_packs += len(bins)
            num_tokens += int(part.sum())
        return num_packs, num_tokens

    return pack


def packers() -> dict[str, tuple[Packer, int]]:
    """Give all packers there are, and how many records each is measured on."""
    found: dict[str, tuple[Packer, int]] = {
        "fam-engine global": (ours(), NUM_RECORDS),
        "fam-engine windowed 10,000": (ours(mode="windowed"), NUM_RECORDS),
        "fam-engine windowed 1,000": (ours(mode="windowed", window=1000), NUM_RECORDS),
        "fam-engine in-order": (ours(mode="in-order"), NUM_RECORDS),
        "fam-engine global, tokens gathered": (ours_gathered, NUM_RECORDS // 20),
    }
    if util.find_spec("trl"):
        found["trl bfd, 1,000 rows"] = (trl_batch(1000), NUM_RECORDS // 20)
        found["trl bfd, one batch"] = (trl_batch(NUM_RECORDS), NUM_RECORDS // 20)
    if util.find_spec("axolotl"):
        found["axolotl pack_group"] = (axolotl(), NUM_RECORDS // 5)
    return found


def measure(name: str, packer: Packer, count: int, rounds: int) -> dict[str, Any]:
    """Measure one packer on one set of lengths."""
    lengths, capacity = make_lengths(name, count)
    runs = []
    for _ in range(rounds):
        start = time.process_time()
        num_packs, num_tokens = packer(lengths, capacity)
        runs.append(time.process_time() - start)
    assert num_tokens == int(lengths.sum()), "a packer that drops tokens is no peer"
    return {
        "records": count,
        "cpu_seconds": runs,
        "cpu_seconds_a_million": statistics.median(runs) * 1e6 / count,
        "packs": num_packs,
        "fill": num_tokens / (num_packs * capacity),
    }


def environment() -> dict[str, Any]:
    """Describe the machine and the versions; a peer that is not there has none."""
    names = ("fam-engine", "numpy", "pyarrow", "trl", "axolotl", "numba")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "device": cpu[0].split(":")[1].strip(),
        "threads": 1,
        "load": os.getloadavg(),
        "versions": {name: _version(name) for name in names},
        "python": platform.python_version(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", default=["gsm8k", "chat", "uniform"])
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(), "results": []}
    for name in options.sets:
        for label, (packer, count) in packers().items():
            row = {"lengths": name, "packer": label, **measure(name, packer, count, options.rounds)}
            results["results"].append(row)
            print(
                f"{name:8} {label:36} {row['cpu_seconds_a_million']:8.3f} s a million "
                f"{100 * row['fill']:7.3f} % full",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What every job says of its model and its memory, and to whom.

In: a decoder, this process. Out: words for its user, figures for `summary.json`.
"""

from __future__ import annotations

import resource
import sys

import torch

from fam_engine.model.decoder import Decoder


def dtype_name(decoder: Decoder) -> str:
    """Give the compute dtype's name, such as `bfloat16`."""
    return str(decoder.compute_dtype).removeprefix("torch.")


def describe(decoder: Decoder) -> str:
    """Say how large the model is, how it is held and where it computes."""
    return (
        f"{decoder.num_parameters / 1e6:.1f} M parameters, {decoder.precision} weights, "
        f"{dtype_name(decoder)} on {decoder.device}"
    )


def peak_memory() -> dict[str, int]:
    """Give the most bytes this process has held, and of a GPU if there is one."""
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak


class Nobody:
    """Nobody to tell about progress."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Say nothing."""

    def advance(self, count: int, detail: str = "") -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
